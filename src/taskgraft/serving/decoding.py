"""Decoding in sandboxed processes: one that hangs, crashes or exhausts its memory is replaced.

The workers are forked from a server process that has already imported everything, so a new one takes milliseconds.
After the start, only raw bytes cross the pipe: a worker that an image took over cannot send a pickle.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from starlette.exceptions import HTTPException

from taskgraft.data import decode
from taskgraft.data.transforms import Preprocessing
from taskgraft.errors import SetupError
from taskgraft.serving.limits import Limits

OK, REJECTED = b"+", b"-"  # first byte of a reply
BASE_MEMORY = 512 * 2**20  # bytes a worker may allocate in addition to its image
BYTES_PER_PIXEL = 32  # a 16-bit image is widened to 64 bits for a moment
START_SECONDS = 120.0  # the first worker waits for the imports of the fork server


class Worker:
    """A process that decodes images: the bytes of a file in; OK and pixels, or REJECTED and the reason, out.

    Raises:
        SetupError: the process did not start.
    """

    def __init__(self, preprocessing: Preprocessing, max_pixels: int) -> None:
        context = multiprocessing.get_context("forkserver")
        self.connection, child_end = context.Pipe()
        self.process = context.Process(target=_run_worker, args=(child_end, preprocessing, max_pixels), daemon=True)
        self.process.start()
        child_end.close()
        try:
            if self.connection.poll(START_SECONDS):  # else the first images would wait for imports and time out
                self.connection.recv_bytes()
                return
        except (EOFError, OSError):
            pass
        self.stop()
        raise SetupError("a decoding process did not start; free some memory or use fewer --workers")

    def decode(self, data: bytes) -> bytes:
        """Send the bytes of a file and block until the reply is there."""
        self.connection.send_bytes(data)
        return self.connection.recv_bytes()

    def stop(self) -> None:
        """Kill the process, whatever it is doing."""
        self.process.kill()
        self.process.join()
        self.connection.close()


class DecoderPool:
    """Workers that decode images, started at once.

    Attributes:
        idle: workers waiting for an image.
        replaced: how many workers hung or died so far.
    """

    def __init__(self, preprocessing: Preprocessing, limits: Limits) -> None:
        multiprocessing.get_context("forkserver").set_forkserver_preload([__name__])
        self.preprocessing = preprocessing
        self.limits = limits
        self.idle: asyncio.Queue[Worker] = asyncio.Queue()
        self.replaced = 0
        # twice as many: a thread is blocked until its hanging worker is killed
        self._threads = ThreadPoolExecutor(2 * limits.workers, "decoding")
        for _ in range(limits.workers):
            self.idle.put_nowait(self._start_worker())

    async def decode(self, data: bytes) -> NDArray[np.uint8]:
        """Decode the bytes of an image file to pixels [S, S, C].

        Raises:
            HTTPException: status 422 for anything that is not an image or too expensive, 503 if all workers are busy.
        """
        limits = self.limits
        try:
            worker = await asyncio.wait_for(self.idle.get(), limits.request_seconds)
        except TimeoutError:
            raise HTTPException(503, "all decoding processes are busy") from None
        reply = asyncio.get_running_loop().run_in_executor(self._threads, worker.decode, data)
        try:
            status_and_data = await asyncio.wait_for(reply, limits.decode_seconds)
        except TimeoutError:
            await self._replace(worker)
            raise HTTPException(422, f"decoding took more than {limits.decode_seconds:g} s") from None
        except (EOFError, OSError):
            await self._replace(worker)
            raise HTTPException(422, "decoding this image failed") from None
        except BaseException:  # cancelled while the worker is busy: its reply must not reach another request
            await asyncio.shield(self._replace(worker))
            raise
        self.idle.put_nowait(worker)
        if status_and_data[:1] == REJECTED:
            raise HTTPException(422, f"not a usable image: {status_and_data[1:].decode('utf-8', 'replace')}")
        size, channels = self.preprocessing.size, self.preprocessing.channels
        return np.frombuffer(status_and_data, np.uint8, offset=1).reshape(size, size, channels)

    def close(self) -> None:
        """Stop the idle workers; the others end with this process, which closes their pipes."""
        while not self.idle.empty():
            self.idle.get_nowait().stop()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _start_worker(self) -> Worker:
        return Worker(self.preprocessing, int(self.limits.max_pixels * 1e6))

    async def _replace(self, worker: Worker) -> None:
        self.replaced += 1
        await asyncio.to_thread(worker.stop)
        self.idle.put_nowait(await asyncio.to_thread(self._start_worker))


def _run_worker(connection: Connection, preprocessing: Preprocessing, max_pixels: int) -> None:
    """The main function of a worker process; returns when the pipe is closed."""
    import warnings

    warnings.simplefilter("ignore")  # Pillow warns about what the decoding rules already decide
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the server decides when to stop
    _restrict_process(max_pixels * BYTES_PER_PIXEL + BASE_MEMORY)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # C libraries write about damaged images, which is no news for the log
    with contextlib.suppress(EOFError, OSError):
        connection.send_bytes(OK)
        while True:
            image = decode.decode_bytes(connection.recv_bytes(), preprocessing, max_pixels)
            if image.pixels is None:
                connection.send_bytes(REJECTED + (image.reason or "unknown").encode())
            else:
                connection.send_bytes(OK + np.ascontiguousarray(image.pixels).tobytes())


def _restrict_process(spare_memory: int) -> None:
    """Allow `spare_memory` more bytes, no written files and no core dump, where the system supports such limits."""
    try:
        import resource
    except ImportError:
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    status = Path("/proc/self/statm")
    if status.exists():
        used = int(status.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + spare_memory, used + spare_memory))
