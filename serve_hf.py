"""Serves a classifier over HTTP: `python serve_hf.py MODEL [--port 8000]`; /docs describes the requests."""

import signal
import socket
import sys
from dataclasses import dataclass

from training.base.inference import labels_of, load_classifier
from training.base.open_set import RejectionArguments, choose_rejection
from training.console import run_program
from training.errors import InputError, blamed
from training.inference.precision import HardwareArguments, choose_hardware, place
from training.recipe import described, parse_program
from training.serving.arguments import ServingArguments

USAGE = "serve_hf.py MODEL [--key value ...]"
CONNECTIONS = 1000  # open at a time
KEPT_S = 75  # of an idle connection; clients and proxies close theirs after 5 to 60 s, and must be the first
GRACE_S = 30  # seconds in which requests in flight may finish after SIGTERM


@dataclass
class ServeArguments(ServingArguments, RejectionArguments, HardwareArguments):
    """Defines the options of serve_hf.py."""

    model: str | None = described(None, "Folder or Hub name of a classifier of this project; the first word.")
    host: str = described("127.0.0.1", "Address to listen on; 0.0.0.0: all of this machine's.")
    port: int = described(8000, "Port to listen on; 0: a free one.", at_least=0, at_most=65535)

    def __post_init__(self):
        super().__post_init__()
        if not self.model:
            raise InputError(f"usage: {USAGE}")


def main(argv: list[str]) -> int:
    return run_program(serve, argv, "the service is closed")


def serve(argv: list[str]):
    """Loads the model and serves it until SIGTERM or Ctrl-C; requests in flight are finished first."""
    arguments = parse_program(argv, ServeArguments, USAGE, "model")
    with blamed("serve_hf.py", 'pip install "modeling-dual-ssast[serve]"'):
        import uvicorn

        from training.serving.service import Service, build
    with listening(arguments.host, arguments.port) as listener:
        model, extractor, rejection = load(arguments)
        labels = labels_of(arguments.model, model.config)
        app = build(Service(arguments.model, model, extractor, labels, arguments, rejection))
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            limit_concurrency=CONNECTIONS,
            timeout_keep_alive=KEPT_S,
            timeout_graceful_shutdown=GRACE_S,
        )
        host = f"[{arguments.host}]" if ":" in arguments.host else arguments.host
        address = f"http://{host}:{listener.getsockname()[1]}"
        print(f"{arguments.model} is served at {address}; {address}/docs describes the requests", flush=True)
        # uvicorn finishes the requests, and then raises the signal again.
        signal.signal(signal.SIGTERM, lambda *_: None)
        uvicorn.Server(config).run(sockets=[listener])


def load(arguments: ServeArguments):
    """Returns the model, on its device and in its number format, its feature extractor, and what rejects clips."""
    hardware = choose_hardware(arguments)
    model, extractor = load_classifier(arguments.model, of_frames=True)
    rejection = choose_rejection(arguments, arguments.model, model)
    print(f"weights: {hardware}", file=sys.stderr)
    return place(model, hardware), extractor, rejection


def listening(host: str, port: int) -> socket.socket:
    """Returns a socket that listens; raises `InputError` where it cannot, before the model is loaded."""
    with blamed(f"host {host}, port {port}", "name another --host or --port"):
        return socket.create_server(
            (host, port), backlog=2048, family=socket.AF_INET6 if ":" in host else socket.AF_INET
        )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
