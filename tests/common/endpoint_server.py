# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""
Test server that follows the contract of custom handlers for Inference Endpoints.

    python tests/common/endpoint_server.py FOLDER

It loads `EndpointHandler` from the folder's `handler.py`, prints its port, and accepts `POST /` with JSON, or with an image
file and parameters in the query. Requests run in parallel threads.
"""

import contextlib
import importlib.util
import json
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse


def load_handler(folder: Path) -> Any:
    """Load `EndpointHandler` from the `handler.py` of a folder, as servers do."""
    spec = importlib.util.spec_from_file_location("handler", folder / "handler.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.EndpointHandler(str(folder))


def create_app(handler: Any) -> FastAPI:
    app = FastAPI()

    @app.post("/")
    async def predict(request: Request) -> JSONResponse:
        body = await request.body()
        if request.headers.get("content-type", "").startswith("application/json"):
            try:
                data = json.loads(body)
            except (ValueError, RecursionError) as error:
                return JSONResponse({"error": f"the body is not valid JSON: {error}"}, status_code=400)
        else:
            data = {"inputs": body, "parameters": dict(request.query_params)}
        try:
            return JSONResponse(await run_in_threadpool(handler, data))
        except Exception as error:
            default = 400 if isinstance(error, ValueError) else 500
            return JSONResponse({"error": str(error)}, status_code=getattr(error, "status_code", default))

    return app


def _listen() -> socket.socket:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    return listener


@contextlib.contextmanager
def serve_in_thread(app: Any) -> Iterator[str]:
    """Serve an application in this process; yields its address."""
    listener = _listen()
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join()


@contextlib.contextmanager
def serve_in_process(folder: Path, log: Path, **environment: str) -> Iterator[tuple[str, int]]:
    """Serve a folder in a new process that logs to `log`; yields its address and process ID."""
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, __file__, str(folder)],
            stdout=subprocess.PIPE,
            stderr=output,
            text=True,
            env={**os.environ, **environment},
        )
        try:
            assert select.select([process.stdout], [], [], 300)[0], "the server did not start"
            line = process.stdout.readline()
            assert line, log.read_text()
            yield f"http://127.0.0.1:{int(line)}/", process.pid
            assert process.poll() is None, "the server has died"
        finally:
            process.terminate()
            process.wait(60)
            process.stdout.close()


def main(folder: str) -> None:
    app = create_app(load_handler(Path(folder)))
    listener = _listen()
    listener.listen(512)
    print(listener.getsockname()[1], flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])


if __name__ == "__main__":
    main(sys.argv[1])
