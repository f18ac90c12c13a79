"""`bigjax plan`: what a config would do on a TPU pod, compiled here, without one."""

import json

from absl import flags

from bigjax.errors import UserError
from bigjax.plan.chips import CHIPS, GIB, parse

TRUST = (
    "How far to trust this: memory is the compiler's own figure. FLOPs are counted, loops "
    "multiplied out.\nThe time was 10% and 16% below published ones of a known trainer: take it "
    "for 20%, and for comparing\nlayouts of one model on one chip.")


def define_flags(f: flags.FlagValues) -> None:
    flags.DEFINE_string("topology", None, "", flag_values=f)
    flags.DEFINE_string("mesh", "", "", flag_values=f)
    flags.DEFINE_bool("json", False, "", flag_values=f)


def run(f: flags.FlagValues, config) -> None:
    """Prints the plan of a config; with --json its last line is an object for machines."""
    if not f.topology:
        raise UserError("--topology=CHIP:AxB is missing: the pod, such as v5e:16x16.")
    from bigjax.plan import compile as compile_lib
    chip = CHIPS[parse(f.topology)[0]]
    with config.unlocked():
        for part in filter(None, f.mesh.split(",")):
            axis, _, size = part.partition("=")
            if axis not in config.mesh or not size.lstrip("-").isdigit():
                raise UserError(f"--mesh={f.mesh!r}: {part!r} is not AXIS=NUMBER, with an axis of "
                                f"{', '.join(config.mesh)}.")
            config.mesh[axis] = int(size)
    found = compile_lib.plans(config, f.topology)
    tokens = config.train.batch_size * config.data.seq_len
    for plan in found:
        print(_page(plan, f.topology, tokens, _mfu(plan, chip)))
    print(TRUST)
    if f.json:
        last = found[-1]
        print(json.dumps({
            "fits": all(plan.fits for plan in found), "hbm_gib": _gib(last.peak_bytes),
            "hbm_limit_gib": last.limit_bytes / GIB, "flops": last.flops,
            "collective_bytes": sum(c.bytes for c in last.collectives),
            "step_seconds": last.step_seconds, "mfu": _mfu(last, chip),
            "tokens_per_sec": last.step_seconds and tokens / last.step_seconds[1],
            "compile_seconds": last.compile_seconds}))


def _gib(n: float | None) -> float | None:
    return n if n is None else n / GIB


def _mfu(plan, chip) -> tuple[float, float] | None:
    """Of the FLOPs that the model needs, at the slowest and the fastest; None if unknown."""
    if not plan.fits or not plan.model_flops:
        return None
    low, high = plan.step_seconds
    share = plan.model_flops / (plan.devices * chip.peak * 1e12)
    return share / high, share / low


def _page(plan, topology: str, tokens: int, mfu) -> str:
    need = "more than that" if plan.peak_bytes is None else f"{plan.peak_bytes / GIB:.2f} GiB"
    phase = f", phase {plan.phase}" if plan.phase else ""
    lines = [f"{topology}, {plan.devices} devices{phase}",
             f"  HBM a device   {need} of {plan.limit_bytes / GIB:.2f}: "
             + ("fits" if plan.fits else "DOES NOT FIT"),
             f"    parameters   {plan.parameter_bytes / GIB:.3f} GiB",
             f"    optimizer    {plan.optimizer_bytes / GIB:.3f} GiB"]
    if plan.peak_bytes:
        rest = plan.peak_bytes - plan.parameter_bytes - plan.optimizer_bytes
        lines.append(f"    the rest     {rest / GIB:.3f} GiB: activations, gradients, gathered "
                     "weights")
    if not plan.fits:
        lines.append("  To make it fit: model.remat='full', a larger mesh.fsdp or mesh.tensor, "
                     "train.accumulate (more micro-batches), or a smaller train.batch_size.")
        return "\n".join(lines)
    lines.append(f"  FLOPs          {plan.flops / 1e12:,.1f} T a device and step"
                 + (f", {plan.kernel_flops / 1e12:,.1f} T in Pallas kernels"
                    if plan.kernel_flops else ""))
    for c in plan.collectives:
        lines.append(f"  {c.kind:<18} along {c.axes or 'one device'}: {c.bytes / 1e9:,.3f} GB "
                     f"sent, {c.seconds * 1e3:,.1f} ms on a ring")
    low, high = plan.step_seconds
    lines.append(f"  step           {low:.3f} to {high:.3f} s (work {plan.work_seconds:.3f} s; "
                 "communication hidden whole, or not at all)")
    lines.append(f"  tokens/s       {tokens / high:,.0f} to {tokens / low:,.0f}")
    if mfu:
        lines.append(f"  MFU            {mfu[0]:.1%} to {mfu[1]:.1%}")
    lines.append(f"  compiled in    {plan.compile_seconds:.0f} s")
    return "\n".join(lines)
