"""The demo with a microcontroller as a person sees it: seven steps, what each found, and whether that is right."""

from __future__ import annotations

from typing import Any

from edgeops.cli.demo.display import Display
from edgeops.cli.demo.mcu_scenario import MACHINE, MCU, MCU_NAME, MODEL, QUESTIONS, McuScenario, Said
from edgeops.cli.demo.site import FLEET
from edgeops.cli.demo.telling import Telling

_FEW = 60
_GROUPS = "67%,100%"
_SHOWN = 20


class McuStory(Telling):
    """Tells a scenario on a display and judges each step."""

    def __init__(self, scenario: McuScenario, display: Display) -> None:
        super().__init__(display)
        self._scenario = scenario

    def tell(self) -> bool:
        """Run all steps; return whether every one did what it should."""
        self._train_and_compile()
        self._sign()
        with self._scenario.powered_board():
            before = self._first_rollout()
            after = self._second_rollout(before)
            self.show_devices(7, self._refuse_a_bad_release(after))
        return self._passed

    def _train_and_compile(self) -> None:
        scenario, display = self._scenario, self._display
        with display.step(1, f"Train a network on {_FEW} labelled digits, and hand it over"):
            handover, right = scenario.prepare("1.0.0", _FEW)
        display.say(f"it is right on {right:.3f} of {len(scenario.data.test)} digits that it was not trained on")
        with display.step(2, f"Compile it for {', '.join(scenario.profiles)}") as say:
            say("searching for the best artifact that passes every gate; on the microcontroller's emulated board, too")
            rows = scenario.compile("1.0.0", handover)
        self.show_compiled(rows)

    def _sign(self) -> None:
        scenario = self._scenario
        with self._display.step(3, "Sign release 1.0.0 into a TUF repository, and its blob for the microcontroller"):
            scenario.init_trust()
            published = scenario.release("1.0.0")
        self.expect(published["version"] == "1.0.0", f"{MODEL} {published['version']} of fleet {FLEET} is published")

    def _first_rollout(self) -> Said:
        scenario, display = self._scenario, self._display
        with display.step(
            4, f"Start the control plane, a gateway with {MACHINE} ({MCU}), a neighbour; roll out"
        ) as say:
            scenario.serve()
            say("control plane is ready; devices enrol")
            names = scenario.enrol()
            status = scenario.rollout("1.0.0", "100%", say)
            say("asking all three")
            answers = [*scenario.ask(), scenario.ask_board("1.0.0")]
        display.say(f"enrolled, or behind who is: {', '.join(names)}")
        self.expect(status["state"] == "succeeded", f"rollout of 1.0.0 {status['state']}")
        self._show_answers(answers, "1.0.0", least=0)
        return answers[-1]

    def _second_rollout(self, before: Said) -> Said:
        scenario, display = self._scenario, self._display
        with display.step(5, "Train on all digits of the training side, and roll out 1.1.0 in two groups") as say:
            handover, right = scenario.prepare("1.1.0", len(scenario.data.train))
            say("compiling")
            rows = scenario.compile("1.1.0", handover)
            scenario.release("1.1.0")
            status = scenario.rollout("1.1.0", _GROUPS, say)
            say("asking all three")
            answers = [*scenario.ask(), scenario.ask_board("1.1.0")]
        self.show_compiled(rows)
        display.say(f"it is right on {right:.3f} of {len(scenario.data.test)} digits that it was not trained on")
        self.expect(status["state"] == "succeeded", f"rollout of 1.1.0 {status['state']}")
        self._show_answers(answers, "1.1.0", least=round(0.9 * QUESTIONS))
        after = answers[-1]
        changed = sum(one != other for one, other in zip(before.digits, after.digits, strict=True))
        self.expect(
            after.right > before.right,
            f"{MCU_NAME}: {changed} answers of {QUESTIONS} are others than before; {before.right} were right, now "
            f"{after.right}",
        )
        return after

    def _refuse_a_bad_release(self, good: Said) -> dict[str, dict[str, Any]]:
        scenario, display = self._scenario, self._display
        with display.step(
            6, "Roll out 1.2.0: signed, but the microcontroller's artifact answers slightly wrongly"
        ) as say:
            scenario.damage("1.1.0", "1.2.0", (MCU,))
            scenario.release("1.2.0")
            status = scenario.rollout("1.2.0", "100%", say)
            devices = scenario.components(scenario.devices())
            say("cutting the board's power, then asking it")
            scenario.cut_power()
            answer = scenario.ask_board("1.1.0")
        stopped = status["stopped_profiles"]
        self.expect(list(stopped) == [MCU], f"rollout of 1.2.0: {MCU} stopped: {stopped.get(MCU, 'it is not')}")
        failure = devices[MCU_NAME]["failure"] or {}
        self.expect(failure.get("code") == "E-SELFTEST-GOLDEN", f"{MCU_NAME} refused it: {failure.get('what')}")
        others = {name: one["active_release"] for name, one in devices.items() if name != MCU_NAME}
        self.expect(set(others.values()) == {"1.2.0"}, f"{', '.join(others)} took it: their artifacts are whole")
        self.expect(
            (answer.release, answer.digits) == ("1.1.0", good.digits),
            f"{MCU_NAME} runs {answer.release} and answers as before, after its power was cut, too",
        )
        return devices

    def _show_answers(self, answers: list[Said], release: str, *, least: int) -> None:
        labels = self._scenario.data.test_labels[:_SHOWN].tolist()
        rows = [("the labels", "", _digits(labels), "")]
        rows += [(one.device, one.release, _digits(one.digits), f"{one.right} of {QUESTIONS}") for one in answers]
        self._display.table(f"The first {_SHOWN} of {QUESTIONS} digits", ("device", "version", "says", "right"), rows)
        for one in answers:
            self.expect(one.release == release and one.right >= least, f"{one.device} runs {one.release}")


def _digits(digits: list[int]) -> str:
    return " ".join(map(str, digits[:_SHOWN]))
