"""Heavy work in a process of its own: for callers that must not load torch, or whose threads would disturb it.

A web server's threads and a measurement take time from each other, and what a measurement or a training holds in
memory should go when it ends. So a fresh Python runs the work here, as `python -m sim.ui.process_tasks TASK`; it
reports progress as a JSON object per line and leaves its outcome in files. It is started by its command line, not by
`multiprocessing`: that would run the caller's main script again.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import tempfile
from collections.abc import Callable
from threading import Thread
from typing import Any

from engine.errors import InputError
from engine.utils.message import Message
from engine.utils.progress import Progress, no_progress

Send = Callable[..., None]

_POLL_S = 0.2  # how often the caller may cancel


def run_apart(
    task: str,
    arguments: dict[str, Any],
    progress: Progress | None = None,
    on_message: Callable[[dict[str, Any]], None] | None = None,
) -> None:
    """Do a task of `TASKS` with these arguments (JSON values) in another process, and wait for it.

    Args:
        task: what to do.
        arguments: its keyword arguments; paths to leave outcomes at are among them.
        progress: called with (fraction done, what is being done) several times a second; an exception from it ends
            the work at once and goes on to the caller.
        on_message: called with each other message of the task.

    Raises:
        InputError: the task refused its arguments, or the process ended without finishing; says why in one line.
    """
    report = progress or no_progress
    with tempfile.TemporaryFile("w+", encoding="utf-8") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "sim.ui.process_tasks", task, json.dumps(arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            encoding="utf-8",
        )
        try:
            finished = _follow(process, report, on_message or (lambda _message: None))
        finally:
            process.kill()
            process.wait()
        if not finished:
            errors.seek(0)
            said = [line.strip() for line in errors if line.strip()]
            raise InputError(_why(task, process.returncode, said[-1] if said else ""))


def _follow(
    process: subprocess.Popen[str], report: Progress, on_message: Callable[[dict[str, Any]], None]
) -> bool:
    """Pass on the messages of the process until it ends; returns whether it finished its task."""
    assert process.stdout is not None
    lines: queue.Queue[str | None] = queue.Queue()
    Thread(target=_read, args=(process.stdout, lines), daemon=True).start()
    fraction, finished = 0.0, False
    doing: str = Message("starting a process")
    while True:
        report(fraction, doing)
        try:
            line = lines.get(timeout=_POLL_S)
            while line is not None:  # all messages so far, before the next call of `progress`
                said = json.loads(line)
                if "refused" in said:
                    raise InputError(str(said["refused"]))
                if "fraction" in said:
                    fraction, doing = float(said["fraction"]), Message(said["doing"], **said["values"])
                elif "finished" in said:
                    finished = True
                else:
                    on_message(said)
                line = lines.get_nowait()
        except queue.Empty:
            continue
        process.wait()
        return finished


def _read(stream: Any, lines: queue.Queue[str | None]) -> None:
    for line in stream:
        lines.put(line)
    lines.put(None)


def _why(task: str, code: int, said: str) -> str:
    if code == -9:
        return f"the process of {task} was killed by the system; most often there is too little memory"
    return f"the process of {task} ended with status {code}{': ' + said[:200] if said else ''}"


def _profile(send: Send, path: str, **asked: Any) -> None:
    """`flywheel profile`: the profile is saved at `path`."""
    from engine.profiling.profiler import measure_profile

    measure_profile(**asked, progress=_progress(send)).save(path)


def _train(
    send: Send,
    out_dir: str,
    config: dict[str, Any],
    texts: list[str] | None,
    tokenizer: str | None,
    library_mb: float,
    prompt: str,
    sample_tokens: int,
) -> None:
    """`flywheel train`: saves the model in `out_dir`; sends each step's loss, and a sample of text at the end."""
    from engine.models.load import quiet
    from engine.training.config import TrainConfig
    from engine.training.trainer import run_training, sample_text

    def on_step(step: int, loss: float | None, validation_loss: float | None) -> None:
        send(step=step, loss=loss, validation_loss=validation_loss)

    with quiet():
        run_training(
            texts,
            out_dir,
            TrainConfig(**config),
            tokenizer,
            progress=_progress(send),
            library_mb=library_mb,
            on_step=on_step,
        )
        send(sample=sample_text(out_dir, prompt, sample_tokens, seed=config.get("seed", 0)))


def _scaling(
    send: Send,
    path: str,
    config: dict[str, Any],
    sizes: list[list[int]],
    vocab_size: int,
    minutes: float,
    library_mb: float,
) -> None:
    """`flywheel scaling` on the standard library: the law is saved at `path`."""
    from engine.models.load import quiet
    from engine.training.config import TrainConfig
    from engine.training.python_docs import standard_library
    from engine.training.scaling_ladder import LadderOptions, measure_law

    with quiet():
        ladder = measure_law(
            standard_library(library_mb),
            TrainConfig(**config),
            LadderOptions(
                [(layers, width) for layers, width in sizes],
                budget_s=60 * minutes,
                text="Python's standard library",
            ),
            vocab_size,
            _progress(send),
        )
    ladder.save(path)


TASKS: dict[str, Callable[..., None]] = {"profile": _profile, "training": _train, "scaling": _scaling}


def _progress(send: Send) -> Progress:
    def report(fraction: float, doing: str) -> None:
        message = doing if isinstance(doing, Message) else Message(doing)
        send(fraction=fraction, doing=message.template, values=message.values)

    return report


def main(arguments: list[str]) -> None:
    """Run a task in this process and send its messages: task name and arguments as JSON."""
    # Only messages go to the caller; prints of libraries go to standard error.
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def send(**content: Any) -> None:
        print(json.dumps(content), file=channel, flush=True)

    try:
        TASKS[arguments[0]](send, **json.loads(arguments[1]))
    except InputError as error:
        send(refused=str(error))
    else:
        send(finished=True)


if __name__ == "__main__":
    main(sys.argv[1:])
