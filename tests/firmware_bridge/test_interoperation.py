"""The firmware speaks the protocol as others know it: driven by smpclient, which shares no code with edgeops."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from model_code import PUBLIC_KEY, adder, signed
from smpclient import SMPClient
from smpclient.generics import success
from smpclient.requests.image_management import ImageErase, ImageStatesRead, ImageStatesWrite
from smpclient.requests.os_management import EchoWrite, MCUMgrParametersRead, ResetWrite
from smpclient.requests.statistics_management import ListOfGroups
from smpclient.transport.serial import SMPSerialTransport

from firmware_bridge import blobs
from firmware_bridge.emulated import HostBoard

pytestmark = pytest.mark.usefixtures("host_compiler")


async def drive(url: str, blob: bytes) -> None:
    async with SMPClient(SMPSerialTransport(), url, timeout_s=60) as client:
        echo = await client.request(EchoWrite(d="hello"))
        assert success(echo)
        assert echo.r == "hello"
        parameters = await client.request(MCUMgrParametersRead())
        assert success(parameters)
        assert (parameters.buf_size, parameters.buf_count) == (2048, 1)
        offsets = [offset async for offset in client.upload(blob)]
        assert offsets[-1] == len(blob)
        assert len(offsets) < len(blob) / 1000, "the negotiated buffer is used"
        states = await client.request(ImageStatesRead())
        assert success(states)
        assert [(image.slot, image.version) for image in states.images] == [(0, "1.0.0")]
        tested = await client.request(ImageStatesWrite(hash=blobs.identity(blob)))
        assert success(tested)
        assert tested.images[0].pending
        assert success(await client.request(ResetWrite()))
        for _ in range(10):
            try:
                assert success(await client.request(EchoWrite(d="back"), timeout_s=5))
                break
            except TimeoutError:
                continue
        confirmed = await client.request(ImageStatesWrite(hash=blobs.identity(blob), confirm=True))
        assert success(confirmed)
        assert confirmed.images[0].active
        assert confirmed.images[0].confirmed
        assert not success(await client.request(ImageStatesWrite(hash=bytes(32))))
        groups = await client.request(ListOfGroups())
        assert success(groups)
        assert set(groups.stat_list) == {"smp", "model"}
        assert success(await client.request(ImageErase(), timeout_s=60))


def test_another_client_updates_the_device(tmp_path: Path):
    small = adder(tmp_path)
    blob = signed(blobs.pack(blobs.read(small), small[blobs.HEADER_SIZE :] + bytes(range(256)) * 64))
    with HostBoard(tmp_path / "flash.bin", [PUBLIC_KEY]) as board:
        asyncio.run(drive(board.url, blob))
