"""Step times with which a fleet's run can be done by hand."""

from __future__ import annotations

from engine.profile.step_time import RooflineStepTime


def times(constant_s: float = 0.0, per_request_s: float = 0.0) -> RooflineStepTime:
    """Steps that take so long, whatever they compute."""
    return RooflineStepTime(
        constant_s=constant_s,
        token_knots=(0,),
        token_slopes_s=(0.0,),
        request_knots=(0,),
        request_slopes_s=(per_request_s,),
        decode_context_s=0.0,
        chunk_s=0.0,
        prefill_pair_s=0.0,
        prefill_context_s=0.0,
    )
