"""Plans as text: one in full, several as a table."""

from collections.abc import Sequence

from selfparam_jax.plan.machines import USABLE, Machine
from selfparam_jax.plan.suggest import Choice, fastest
from selfparam_jax.reports.tables import markdown_table

_GIB = 2**30
_SIZES = ("parameters", "adapter", "optimizer", "batch", "activations", "total")
_HEADER = ("devices", "mesh", "weights", "adapter, optimizer", "activations", "total", "of")
_HEADER += ("sent per step, GB", "least s per step", "")


def describe_plan(plan: dict) -> str:
    """A plan (`plan.make_plan`) as text of several lines."""
    mesh = " x ".join(f"{name} {size}" for name, size in plan["mesh"].items())
    lines = [
        f"{plan['machine']}: mesh {mesh}, {plan['batch_size']} rows x {plan['seq_len']} tokens, "
        f"remat {plan['remat']}, {plan['base_weights']} base"
    ]
    if note := rounding_note(plan):
        lines.append(note)
    lines += ["", "per device, GiB:"]
    more = (name for name in ("gathered_ahead", "teacher_head") if plan[name])
    lines += [f"  {name:<14} {plan[name] / _GIB:8.2f}" for name in (*_SIZES[:-1], *more, _SIZES[-1])]
    state = "fits" if plan["fits"] else "DOES NOT FIT"
    lines.append(f"  of             {plan['memory'] / _GIB:8.2f}   {state} ({USABLE:.0%} usable)")
    if reading := plan["teacher"]:
        need = plan["parameters"] + reading["weights"] + reading["context"] + reading["reading"]
        own = f"its weights {reading['weights'] / _GIB:.2f}, " if reading["weights"] else ""
        lines.append(
            f"teacher, on a context of {reading['context_tokens']:,} tokens: {need / _GIB:.2f} ({own}its keys and "
            f"values {reading['context'] / _GIB:.2f}, reading rows after it up to {reading['reading'] / _GIB:.2f})"
        )
    sent = ", ".join(f"{kind} {size / 1e9:.2f}" for kind, size in plan["sent"].items()) or "nothing"
    lines += [
        f"teacher store: {plan['teacher_store_per_token']:,} bytes per sentence token, on disk",
        "",
        f"per step and device: {plan['flops'] / 1e12:.2f} TFLOP in products; sent, GB: {sent}",
        f"least time by published peaks: compute {plan['compute_s']:.3f} s, memory {plan['read_s']:.3f} s, "
        f"links {plan['send_s']:.3f} s",
        f"so at least {plan['step_s']:.3f} s a step, at most {plan['sentence_tokens_per_s']:,.0f} tokens/s",
    ]
    return "\n".join(lines)


def rounding_note(plan: dict) -> str:
    """Says that the batch size was rounded up; an empty string if it was not."""
    if plan["batch_size"] == plan["requested_batch_size"]:
        return ""
    shards = plan["mesh"]["data"] * plan["mesh"]["fsdp"]
    return (
        f"batch size {plan['requested_batch_size']} cannot be split over {shards} devices (data x fsdp): "
        f"rounded up to {plan['batch_size']}, as the job does"
    )


_PROGRAMS = ("program", "weights and other arguments", "results", "temporary", "code", "total", "TFLOP", "moved, GB")
_PROGRAMS += ("sent, GB", "of it waited for", "least s", "bound by", "compiler's s")
_BOUNDS = {"compute_s": "compute", "read_s": "memory", "send_s": "links"}


def describe_compiled(plan: dict) -> str:
    """A plan by the devices' own compiler (`plan.compiled_plan`): a line on the job, and a table of its programs."""
    mesh = " x ".join(f"{name} {size}" for name, size in plan["mesh"].items())
    lines = [
        f"{plan['machine']}, {plan['compiler'].upper()} compiler: mesh {mesh}, {plan['batch_size']} rows x "
        f"{plan['seq_len']} tokens, {plan['dtype']}, remat {plan['remat']}, attention {plan['attention']}, "
        f"{plan['base_weights']} base"
    ]
    if note := rounding_note(plan):
        lines.append(note)
    rows, errors = [], []
    for each in plan["programs"]:
        if "error" in each:
            errors.append(f"{each['name']}: the compiler refuses it: {each['error']}")
            continue
        bound = max(_BOUNDS, key=lambda name: each[name])
        estimate = each["cycles_s"]
        rows.append(
            (
                each["name"],
                *(f"{each[size] / _GIB:.2f}" for size in ("arguments", "results", "temporary", "code", "total")),
                f"{each['flops'] / 1e12:.2f}",
                f"{each['moved'] / 1e9:.2f}",
                f"{sum(each['sent'].values()) / 1e9:.2f}",
                f"{sum(each['exposed'].values()) / 1e9:.2f}",
                f"{each['step_s']:.4f}",
                _BOUNDS[bound],
                "" if estimate is None else f"{estimate:.4f}",
            )
        )
    if kernels := [each["name"] for each in plan["programs"] if each.get("kernels")]:
        errors.append(f"TFLOP and times leave out the Pallas kernels in: {', '.join(kernels)}")
    state = "fits" if plan["fits"] else "DOES NOT FIT"
    lines += ["", markdown_table(_PROGRAMS, rows), "", *errors]
    lines.append(
        f"sizes in GiB per device, of {plan['memory'] / _GIB:.2f} ({USABLE:.0%} usable): {state}. One run of each; "
        "least s by published peaks."
    )
    return "\n".join(lines)


def plan_table(plans: Sequence[dict], remarks: Sequence[str]) -> str:
    """Several plans as a Markdown table.

    Args:
      plans: from `plan.make_plan`; sizes are shown in GiB per device.
      remarks: the last cell of each row.
    """
    rows = []
    for plan, remark in zip(plans, remarks, strict=True):
        size = {name: plan[name] / _GIB for name in (*_SIZES, "gathered_ahead", "memory")}
        rows.append(
            (
                plan["machine"],
                " x ".join(str(part) for part in plan["mesh"].values()),
                f"{size['parameters']:.2f}",
                f"{size['adapter'] + size['optimizer']:.2f}",
                f"{size['activations'] + size['gathered_ahead']:.2f}",
                f"{size['total']:.2f}",
                f"{size['memory']:.0f}",
                f"{sum(plan['sent'].values()) / 1e9:.1f}",
                f"{plan['step_s']:.2f}",
                "; ".join(part for part in (remark, rounding_note(plan)) if part),
            )
        )
    return markdown_table(_HEADER, rows)


def describe_choices(machine: Machine, compiler: str, choices: Sequence[Choice]) -> str:
    """Settings that were tried (`suggest.fastest_settings`), as a table, and the fastest that fits.

    Args:
      machine: what was compiled for.
      compiler: by which; "cpu" for estimates.
      choices: the job itself first.
    """
    rows = []
    for each in choices:
        state = each.note or ("fits" if each.fits else "does not fit")
        size = "" if each.total is None else f"{each.total / _GIB:.2f}"
        rows.append((each.flags or "as it is", size, f"{each.tokens_per_s:,.0f}" if each.total else "", state))
    given, best = choices[0], fastest(choices)
    if best is None:
        found = "none of these fits; use more devices, or --config.base_weights=int8"
    elif best is given:
        found = "the job as it is is the fastest of those that fit"
    else:
        times = f", {best.tokens_per_s / given.tokens_per_s:.2f} times the job as it is" if given.fits else ""
        found = f"the fastest that fits: {best.flags} ({best.tokens_per_s:,.0f} tokens/s{times})"
    by = "estimates from this CPU's compiler" if compiler == "cpu" else f"{compiler.upper()} compiler"
    memory = f"of {machine.chip.memory / _GIB:.2f} GiB a device, {USABLE:.0%} are usable"
    header = ("settings", "GiB a device", "tokens/s, estimated", "")
    return f"{machine.name}, {by}: {memory}\n\n{markdown_table(header, rows)}\n\n{found}"


def choice_records(choices: Sequence[Choice]) -> list[dict]:
    """The same for JSON: "flags", "total" (bytes of a device), "tokens_per_s", "fits" and "note"."""
    names = ("flags", "total", "tokens_per_s", "fits", "note")
    return [{name: getattr(each, name) for name in names} for each in choices]
