"""DCP's checkpoint_id as run and step."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from tierstore.errors import InvalidKeyError
from tierstore.keys import check_run

_STEP = re.compile(r"(?:step[-_])?([0-9]{1,12})")
_FORM = 'write "<run>/<step>", for example "llama-8b/100" or "llama-8b/step-100"'


@dataclass(frozen=True, slots=True)
class CheckpointId:
    """One checkpoint of a run; without a step the newest."""

    run: str
    step: int | None

    def __str__(self) -> str:
        return f"{self.run}/{'latest' if self.step is None else self.step}"


def parse_id(checkpoint_id: str | os.PathLike[str], run: str | None = None) -> CheckpointId:
    """Return the run and the step that a checkpoint_id names.

    Args:
        checkpoint_id: "<run>/<step>", where the step is a number, alone or after "step-" or
            "step_"; or "<run>" or "<run>/latest" for the newest step.
        run: the run, if it is known otherwise. Then only the last component is looked at, so a
            trainer may pass the paths it is used to, such as "outputs/checkpoint/step-100".

    Raises:
        InvalidKeyError: it is something else.
    """
    text = os.fspath(checkpoint_id)
    head, slash, last = text.rpartition("/")
    if run is None:
        if "/" in head:
            raise InvalidKeyError(f"checkpoint_id {text!r} has more than two parts", hint=_FORM)
        run, last = (head, last) if slash else (last, "latest")
    try:
        check_run(run)
    except InvalidKeyError as error:
        raise InvalidKeyError(f"checkpoint_id {text!r}: {error.message}", hint=_FORM) from None
    if last == "latest":
        return CheckpointId(run, None)
    if not (match := _STEP.fullmatch(last)):
        raise InvalidKeyError(f"checkpoint_id {text!r} does not end in a step", hint=_FORM)
    return CheckpointId(run, int(match[1]))
