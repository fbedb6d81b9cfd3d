"""The demo as a person sees it: seven steps, what each found, and whether that is what should be."""

from __future__ import annotations

from typing import Any

from edgeops.cli.demo.display import Display
from edgeops.cli.demo.scenario import GROUPS, MODEL, PROFILES, Scenario
from edgeops.cli.demo.site import FLEET
from edgeops.cli.demo.telling import Telling


class Story(Telling):
    """Tells a scenario on a display and judges each step."""

    def __init__(self, scenario: Scenario, display: Display) -> None:
        super().__init__(display)
        self._scenario = scenario

    def tell(self) -> bool:
        """Run all steps; return whether every one did what it should."""
        self._take_and_compile()
        self._sign()
        self._start_and_serve()
        self._update_under_load()
        self.show_devices(7, self._refuse_a_bad_release())
        return self._passed

    def _take_and_compile(self) -> None:
        scenario, display = self._scenario, self._display
        with display.step(1, "Take a published OCR model and real text lines") as say:
            say("fetching and cropping")
            handover, data = scenario.prepare("1.0.0", windows_per_line=1, seed=7)
        for name, side in (("calibration", data.calibration), ("evaluation", data.evaluation)):
            display.say(f"{name}: {len(side.images)} crops of {side.lines} distinct lines, none of them on both sides")
        with display.step(2, f"Compile it for {', '.join(PROFILES)}") as say:
            say("searching for the best artifact that passes every gate")
            rows = scenario.compile("1.0.0", handover)
        self.show_compiled(rows)

    def _sign(self) -> None:
        scenario = self._scenario
        with self._display.step(3, "Sign release 1.0.0 into a TUF repository"):
            scenario.init_trust()
            published = scenario.release("1.0.0")
        self.expect(published["version"] == "1.0.0", f"{MODEL} {published['version']} of fleet {FLEET} is published")

    def _start_and_serve(self) -> None:
        scenario, display = self._scenario, self._display
        with display.step(4, "Start the control plane and three agents, and roll out 1.0.0") as say:
            facts = scenario.serve()
            say("control plane is ready; devices enrol")
            devices = scenario.enrol()
            status = scenario.rollout("1.0.0", "100%", say)
            scenario.find_endpoints()
            answers = scenario.ask()
            providers = {name: scenario.provider(name) for name in devices}
        safety = "mutual TLS" if facts["broker"]["tls"] else "loopback only, no TLS"
        display.say(f"broker: {facts['broker_kind']}, {safety}")
        display.say(f"enrolled with key, CSR and certificate: {', '.join(devices)}")
        self.expect(status["state"] == "succeeded", f"rollout of 1.0.0 {status['state']}")
        for name, provider in providers.items():
            display.say(f"{name} runs on {provider}")
        for answer in answers:
            right = f"{answer.right} of {answer.images} real images answered right"
            self.expect(answer.right >= 0.9 * answer.images, f"{answer.device}: {right}")

    def _update_under_load(self) -> None:
        scenario, display = self._scenario, self._display
        with display.step(5, "Roll out 1.1.0 in two groups while requests keep flowing") as say:
            say("compiling with a larger calibration set")
            handover, _ = scenario.prepare("1.1.0", windows_per_line=3, seed=11)
            rows = scenario.compile("1.1.0", handover)
            scenario.release("1.1.0")
            with scenario.traffic() as flows:
                status = scenario.rollout("1.1.0", GROUPS, say)
        self.show_compiled(rows)
        self.expect(status["state"] == "succeeded", f"rollout of 1.1.0 {status['state']}")
        dropped = sum(sum(flow.failures.values()) for flow in flows)
        answered = sum(flow.answered for flow in flows)
        self.expect(dropped == 0 and answered > 0, f"{answered} requests answered meanwhile, {dropped} dropped")
        for flow in flows:
            self.expect(flow.accuracy >= 0.9, f"{flow.device}: {flow.answered} answers, {flow.accuracy:.3f} right")

    def _refuse_a_bad_release(self) -> dict[str, dict[str, Any]]:
        scenario, display = self._scenario, self._display
        with display.step(6, "Roll out 1.2.0: signed, but its artifacts answer slightly wrongly") as say:
            scenario.damage("1.1.0", "1.2.0")
            scenario.release("1.2.0")
            with scenario.traffic() as flows:
                status = scenario.rollout("1.2.0", GROUPS, say)
            devices = scenario.components(scenario.devices())
        self.expect(status["state"] == "stopped", f"rollout of 1.2.0 {status['state']}: {status['reason']}")
        served = {component["active_release"] for component in devices.values()}
        refused = [name for name, component in devices.items() if component["state"] == "failed"]
        self.expect(served == {"1.1.0"}, f"all devices go on serving {', '.join(sorted(map(str, served)))}")
        self.expect(
            len(refused) == 2, f"refused in their self-test by {', '.join(refused)}; the second group got nothing"
        )
        dropped = sum(sum(flow.failures.values()) for flow in flows)
        self.expect(
            dropped == 0, f"{sum(flow.answered for flow in flows)} requests answered meanwhile, {dropped} dropped"
        )
        return devices
