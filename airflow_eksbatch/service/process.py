"""The process: opens everything in order, serves HTTP, ends cleanly on SIGTERM, and tells how it ended."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Awaitable, Callable

import msgspec
from starlette.types import ASGIApp

from airflow_eksbatch.cloud.port import Cloud
from airflow_eksbatch.cluster.port import Cluster
from airflow_eksbatch.floor.clock import Backoff
from airflow_eksbatch.service.broadcast import Broadcast
from airflow_eksbatch.service.desk import ServiceDesk
from airflow_eksbatch.service.front import Front, http_server
from airflow_eksbatch.service.inbox import Inbox
from airflow_eksbatch.service.lease import Lease, LeaseLost
from airflow_eksbatch.service.loop import Loop
from airflow_eksbatch.service.performer import Performer
from airflow_eksbatch.service.store_thread import StoreThread
from airflow_eksbatch.service.telemetry import Telemetry
from airflow_eksbatch.service.watchers import Watchers
from airflow_eksbatch.store.port import Fenced, NewerSchema, Store, StoreError

EXIT_OK, EXIT_USAGE, EXIT_FENCED, EXIT_BUG = 0, 2, 3, 70
# Time for the last beat and for effects under way; what is not done then is derived again at the next start.
STOP_S = 20.0
EFFECTS_S = 3.0
FORGET_EVERY_S = 600.0
FORGET_AT_ONCE = 500
STANDBY = "standby"


class Parts(msgspec.Struct, frozen=True, kw_only=True):
    """Everything the process is made of."""

    store: StoreThread
    inbox: Inbox
    loop: Loop
    performer: Performer
    watchers: Watchers
    lease: Lease
    broadcast: Broadcast
    telemetry: Telemetry
    cluster: Cluster
    cloud: Cloud
    desk: ServiceDesk
    app: ASGIApp
    clock: Callable[[], int]
    keep_ms: int


OnReady = Callable[["Process"], Awaitable[None]]


class Process:
    """One run of the service, from an empty event loop to an exit code."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.front = Front(
            parts.app,
            parts.lease.standby,
            parts.lease.secret,
            lambda: parts.loop.trouble == STANDBY,
        )
        self._stop = asyncio.Event()

    def stop(self) -> None:
        """Begin the clean end; a second time ends at once, which is as safe as kill -9."""
        if self._stop.is_set():
            os._exit(EXIT_BUG)
        self._stop.set()

    async def run(self, listening: socket.socket, on_ready: OnReady) -> int:
        """Until a signal, a lost lease or a bug. Raises StoreError if the database cannot be opened."""
        parts = self.parts
        try:
            await parts.store.ask(lambda store: store.prepare())
        except StoreError:
            await parts.store.close()
            raise
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self.stop)
        server = http_server(self.front)
        serving = asyncio.create_task(server.serve(sockets=[listening]), name="http")
        try:
            return await self._serve(serving, on_ready)
        finally:
            parts.broadcast.close()
            server.should_exit = True
            with contextlib.suppress(Exception):
                await serving
            await parts.lease.standby.close()
            await parts.store.close()

    async def _serve(self, serving: asyncio.Task[None], on_ready: OnReady) -> int:
        parts, stopped = self.parts, asyncio.create_task(self._stop.wait(), name="stop")
        parts.loop.trouble = STANDBY
        leading = asyncio.create_task(self._lead(), name="lease")
        await asyncio.wait({leading, stopped, serving}, return_when=asyncio.FIRST_COMPLETED)
        if not leading.done():
            leading.cancel()
            await asyncio.gather(leading, return_exceptions=True)
            if parts.lease.is_sure():
                await parts.lease.release()
            return EXIT_OK
        try:
            leading.result()
        except (Fenced, LeaseLost) as error:
            return _exit_code(error, parts.telemetry)
        tasks = await self._open(on_ready)
        try:
            await asyncio.wait({*tasks, stopped, serving}, return_when=asyncio.FIRST_COMPLETED)
            return await self._close(tasks)
        finally:
            stopped.cancel()
            for task in tasks:
                task.cancel()

    async def _lead(self) -> None:
        """Wait for the lease, then bring the schema forward: not before, so that an older release that leads goes on.

        A database that has just moved to another machine is away for moments, which is no reason to end. Raises NewerSchema,
        having let the lease go: an older release cannot follow, but others can.
        """
        parts, backoff, failures = self.parts, Backoff(first_s=0.1, most_s=2.0), 0
        await parts.lease.acquire()
        parts.loop.trouble = "loading"
        while True:
            try:
                async with parts.lease.hold():
                    await parts.store.ask(lambda store: store.open())
                return
            except Fenced:
                raise
            except NewerSchema:
                await parts.lease.release()
                raise
            except StoreError as error:
                failures += 1
                parts.loop.trouble = f"the database cannot be brought forward: {error}"
                parts.telemetry.store_failed("open", str(error))
                await asyncio.sleep(backoff.after(failures))

    async def _open(self, on_ready: OnReady) -> list[asyncio.Task[None]]:
        """Start what beats; the first task is the loop itself."""
        parts = self.parts
        await parts.cluster.start()
        await parts.cloud.start()
        parts.watchers.open()
        return [
            asyncio.create_task(parts.loop.run(), name="loop"),
            asyncio.create_task(parts.lease.keep(), name="lease"),
            asyncio.create_task(self._forget(), name="forget"),
            asyncio.create_task(self._when_ready(on_ready), name="ready"),
        ]

    async def _close(self, tasks: list[asyncio.Task[None]]) -> int:
        """Finish the beat, leave the pods running, and say how it ended."""
        parts, log = self.parts, self.parts.telemetry.log
        parts.inbox.close("The service is stopping.")
        parts.loop.stop()
        failed = [task for task in tasks if task.done() and task.exception() is not None]
        if not failed:
            log.info("stopping")
            done, _ = await asyncio.wait({tasks[0]}, timeout=STOP_S)
            failed = [task for task in done if task.exception() is not None]
        parts.loop.trouble = "stopping"
        parts.inbox.refuse_waiting("The service is stopping.")
        await parts.watchers.close()
        if not failed:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(parts.performer.idle(), EFFECTS_S)
        await parts.performer.close()
        await parts.cluster.stop()
        await parts.cloud.stop()
        if not failed:
            await parts.lease.release()
            log.info("stopped")
            return EXIT_OK
        return _exit_code(failed[0].exception(), parts.telemetry)

    async def _when_ready(self, on_ready: OnReady) -> None:
        """Called once, after the first committed beat; then waits for ever like its siblings."""
        await self.parts.loop.beating.wait()
        await on_ready(self)
        await asyncio.Event().wait()

    async def _forget(self) -> None:
        """Drop what is older than it is kept for, a little at a time so that commits pass in between."""
        parts = self.parts

        def forget(store: Store) -> int:
            return store.forget_before(parts.clock() - parts.keep_ms, FORGET_AT_ONCE)

        while True:
            forgotten = 0
            try:
                forgotten = await parts.store.ask(forget)
            except StoreError as error:
                parts.telemetry.store_failed("forget", str(error))
            await asyncio.sleep(0.1 if forgotten else FORGET_EVERY_S)


def _exit_code(error: BaseException | None, telemetry: Telemetry) -> int:
    if isinstance(error, Fenced | LeaseLost):
        telemetry.log.error("stopped: the lease is lost", reason=str(error))
        return EXIT_FENCED
    telemetry.log.critical("stopped by a bug; start again, nothing is lost", exc_info=error)
    return EXIT_BUG


def run_process(make: Callable[[], tuple[Process, socket.socket, OnReady]]) -> int:
    """Run a process on a fast event loop where there is one."""

    async def main() -> int:
        process, listening, on_ready = make()
        return await process.run(listening, on_ready)

    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(main())


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop
