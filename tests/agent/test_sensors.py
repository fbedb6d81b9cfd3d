"""The device's own figures, from what the kernels of a Raspberry Pi, a Jetson and a PC say."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeops.agent.conditions import DeviceProbe
from edgeops.agent.device_meter import QUIET_EVERY_S, DeviceMeter
from edgeops.agent.holds import HoldRules
from edgeops.agent.sensors import Sensors

PI = {
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
    "sys/class/thermal/thermal_zone0/temp": "61322\n",
    "sys/class/thermal/cooling_device0/type": "pwm-fan\n",
    "sys/class/thermal/cooling_device0/cur_state": "4\n",
    "sys/devices/platform/soc/soc:firmware/get_throttled": "50005\n",
    "proc/net/route": (
        "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\n"
        "eth0 00000000 0101A8C0 0003 0 0 202 00000000 0 0 0\n"
        "wlan0 00000000 0101A8C0 0003 0 0 100 00000000 0 0 0\n"
    ),
    "proc/net/wireless": (
        "Inter-| sta-|   Quality        |   Discarded packets               | Missed | WE\n"
        " face | tus | link level noise |  nwid  crypt   frag  retry   misc | beacon | 22\n"
        " wlan0: 0000   56.  -54.  -256        0      0      0      0      0        0\n"
    ),
    "proc/meminfo": "MemTotal:        3884328 kB\nMemFree:          200000 kB\nMemAvailable:    2097152 kB\n",
    "proc/uptime": "350735.47 234388.90\n",
    "proc/stat": "cpu  100 0 100 700 100 0 0 0 0 0\ncpu0 100 0 100 700 100 0 0 0 0 0\n",
}
JETSON = {
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
    "sys/class/thermal/thermal_zone0/temp": "54218\n",
    "sys/class/thermal/thermal_zone1/type": "gpu-thermal\n",
    "sys/class/thermal/thermal_zone1/temp": "57000\n",
    "sys/class/thermal/thermal_zone2/type": "cv0-thermal\n",
    "sys/class/thermal/thermal_zone2/temp": "",
    "sys/class/thermal/cooling_device0/type": "cpufreq-cpu0\n",
    "sys/class/thermal/cooling_device0/cur_state": "2\n",
    "sys/class/thermal/cooling_device1/type": "gpufreq\n",
    "sys/class/thermal/cooling_device1/cur_state": "0\n",
    "proc/net/route": (
        "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\n"
        "eth0 00000000 0101A8C0 0003 0 0 202 00000000 0 0 0\n"
    ),
    "sys/class/net/eth0/speed": "1000\n",
}


def board(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


def test_a_raspberry_pi_that_is_held_back_says_why(tmp_path: Path) -> None:
    sensors = Sensors(board(tmp_path, PI))
    assert sensors.throttled() == {"under-voltage", "throttled"}
    assert sensors.zones_c() == {"cpu-thermal": 61.322}
    assert sensors.default_interface() == "wlan0"
    assert sensors.signal_dbm("wlan0") == -54.0
    assert (sensors.signal_dbm("eth0"), sensors.speed_mbit("wlan0")) == (None, None)
    assert sensors.boot_s() == 350735.47
    assert sensors.memory_mib("MemAvailable") == 2048


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("throttled=0x0", set()),
        ("throttled=0x50000", set()),  # it was, before
        ("throttled=0xf", {"under-voltage", "frequency-capped", "throttled", "soft-temperature-limit"}),
        ("error", set()),
    ],
)
def test_the_firmwares_tool_is_asked_where_the_kernel_does_not_say(tmp_path: Path, said: str, found: set[str]) -> None:
    tool = tmp_path / "vcgencmd"
    tool.write_text(f"#!/bin/sh\n[ $1 = get_throttled ] && echo {said}\n")
    tool.chmod(0o755)
    assert Sensors(tmp_path / "root", str(tool)).throttled() == found


def test_a_tool_that_fails_is_not_asked_again(tmp_path: Path) -> None:
    tool = tmp_path / "vcgencmd"
    tool.write_text(f"#!/bin/sh\necho asked >> {tmp_path}/log\nexit 1\n")
    tool.chmod(0o755)
    sensors = Sensors(tmp_path / "root", str(tool))
    assert [sensors.throttled() for _ in range(3)] == [frozenset()] * 3
    assert (tmp_path / "log").read_text() == "asked\n"


def test_a_jetson_tells_its_zones_and_what_cools_it(tmp_path: Path) -> None:
    sensors = Sensors(board(tmp_path, JETSON))
    assert sensors.zones_c() == {"cpu-thermal": 54.218, "gpu-thermal": 57.0}
    assert sensors.throttled() == {"cooling cpufreq-cpu0"}
    assert sensors.speed_mbit("eth0") == 1000


def test_a_board_that_says_nothing_has_no_figures(tmp_path: Path) -> None:
    for files in ({}, {"proc/stat": "cpu x\n", "proc/uptime": "\n", "proc/net/route": "\n", "proc/meminfo": "\n"}):
        sensors = Sensors(board(tmp_path, files))
        assert (sensors.zones_c(), sensors.throttled(), sensors.processor()) == ({}, frozenset(), None)
        assert (sensors.boot_s(), sensors.default_interface(), sensors.memory_mib("MemTotal")) == (None, None, None)
        meter = DeviceMeter(sensors, tmp_path, lambda: 0)
        figures = meter.take()
        assert (figures.temperature_c, figures.cpu_share, figures.memory_available_mib) == (None, None, None)
        assert figures.disk_free_mib is not None
        assert figures.disk_total_mib is not None


def test_a_window_has_the_extremes_of_its_looks_and_forgets_them(tmp_path: Path) -> None:
    root = board(tmp_path, PI)
    meter = DeviceMeter(Sensors(root), tmp_path, lambda: 3)
    (root / "sys/class/thermal/thermal_zone0/temp").write_text("83000\n")
    (root / "proc/meminfo").write_text("MemTotal: 3884328 kB\nMemAvailable: 1024 kB\n")
    meter.look()
    for name in ("sys/class/thermal/thermal_zone0/temp", "proc/meminfo"):
        (root / name).write_text(PI[name])
    (root / "sys/devices/platform/soc/soc:firmware/get_throttled").write_text("50000\n")
    # 1000 ticks, 250 of them idle or waiting for a disk.
    (root / "proc/stat").write_text("cpu  500 0 450 850 200 0 0 0 0 0\n")
    hot = meter.take()
    assert (hot.temperature_c, hot.zones_c, hot.memory_available_mib) == (83.0, {"cpu-thermal": 83.0}, 1.0)
    assert (hot.throttled, hot.cpu_share, hot.boot_s) == (("throttled", "under-voltage"), 0.75, 350735.47)
    assert hot.link is not None
    assert (hot.link.interface, hot.link.signal_dbm, hot.link.connects) == ("wlan0", -54.0, 3)
    calm = meter.take()
    assert (calm.temperature_c, calm.throttled, calm.memory_available_mib) == (61.322, (), 2048)


def test_a_quiet_device_is_told_of_each_hour_and_when_something_holds_it_back(tmp_path: Path) -> None:
    now = [0.0]
    root = board(tmp_path, {**PI, "sys/devices/platform/soc/soc:firmware/get_throttled": "0\n"})
    meter = DeviceMeter(Sensors(root), tmp_path, lambda: 0, clock=lambda: now[0])
    meter.look()
    assert not meter.due
    now[0] = QUIET_EVERY_S
    assert meter.due
    meter.take()
    assert not meter.due
    (root / "sys/devices/platform/soc/soc:firmware/get_throttled").write_text("1\n")
    meter.look()
    assert meter.due
    assert meter.take().throttled == ("under-voltage",)
    meter.look()
    assert not meter.due, "it goes on, which is no news"


def test_holds_see_the_same_board(tmp_path: Path) -> None:
    found = DeviceProbe(HoldRules(), lambda: 1.0, tmp_path, board(tmp_path, PI))()
    assert (found.temperature_c, found.default_interface, found.memory_available_mib) == (61.322, "wlan0", 2048)


def test_the_default_route_of_a_device_that_has_ipv6_only_is_found(tmp_path: Path) -> None:
    """Else its metered link would not be known as one."""
    net = tmp_path / "proc" / "net"
    net.mkdir(parents=True)
    head = "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\n"
    (net / "route").write_text(head)
    nothing, hop = "0" * 32, "fe80" + "0" * 27 + "1"
    rows = (
        f"{nothing} 00 {nothing} 00 {hop} 00000400 00000001 00000000 00000003     eth0\n",
        f"{nothing} 00 {nothing} 00 {hop} 00000064 00000001 00000000 00000003    wwan0\n",
        f"{nothing} 00 {nothing} 00 {nothing} ffffffff 00000001 00000000 00200200       lo\n",
        f"fd00{'0' * 28} 40 {nothing} 00 {nothing} 00000001 00000001 00000000 00000001     eth1\n",
    )
    (net / "ipv6_route").write_text("".join(rows))
    assert Sensors(tmp_path).default_interface() == "wwan0"
    (net / "route").write_text(head + "wlan0 00000000 0101A8C0 0003 0 0 600 00000000 0 0 0\n")
    assert Sensors(tmp_path).default_interface() == "wlan0"
    (net / "route").unlink()
    (net / "ipv6_route").write_text("".join(rows[2:]))
    assert Sensors(tmp_path).default_interface() is None
