"""Says whether a job fits a machine and how long a step would take, without the machine and without weights.

    selfparam plan --config=FILE --devices=v5e-16[,h100-8,...] [--compiler=tpu|gpu] [--config.NAME=VALUE ...]

The real training step is compiled for virtual devices. The architecture is read from --architecture (a config.json),
from a .json of the configuration's name beside it, or else from the model itself.

With --suggest it tries meshes, recomputation and sizes of the loss chunks, and prints the fastest that fits.

With --compiler=tpu or gpu all programs of the job are compiled by the devices' own compiler, without the devices: it
knows what they hold. That takes minutes for billions of parameters, and the extra `tpu` or `gpu-plan`.

Example: selfparam plan --config=configs/models/llama3_8b.py --devices=v5e-16
"""

import functools
import sys
from collections.abc import Sequence

import jax
from absl import flags, logging
from ml_collections import config_flags

from selfparam_jax.checkpoints.default_model import cache_directory
from selfparam_jax.commands import command
from selfparam_jax.distributed import backend, files
from selfparam_jax.jobs.dry_run import workload_of
from selfparam_jax.jobs.settings import read_settings
from selfparam_jax.models.decoder import ModelConfig
from selfparam_jax.plan.compilers import COMPILERS, CompilerMissingError, check_installed
from selfparam_jax.plan.machines import Machine, read_machine
from selfparam_jax.plan.plan import compiled_plan, make_plan, suggestion
from selfparam_jax.plan.suggest import fastest_settings
from selfparam_jax.plan.workload import Workload, read_architecture
from selfparam_jax.reports.plans import choice_records, describe_choices, describe_compiled, describe_plan, plan_table


def define_flags(argv: list[str]) -> flags.FlagValues:
    """The command's own flags; `argv` is the whole command line, the program's name first."""
    values = flags.FlagValues()
    command.define_config(values, argv)
    flags.DEFINE_list(
        "devices",
        None,
        "KIND-COUNT, such as v5e-16, v4-8, h100-8 or h200-1; several, separated by commas, give a table.",
        flag_values=values,
    )
    flags.DEFINE_string("architecture", "", "A config.json in Hugging Face's layout.", flag_values=values)
    flags.DEFINE_integer(
        "context_tokens",
        0,
        "Tokens of the longest document: also plans what the teacher needs to read it.",
        lower_bound=0,
        upper_bound=2**30,
        flag_values=values,
    )
    flags.DEFINE_enum(
        "compiler",
        "cpu",
        list(COMPILERS),
        "cpu: estimates from the training step as compiled for this CPU. tpu, gpu: all programs, by the compiler of "
        "the devices.",
        flag_values=values,
    )
    flags.DEFINE_list(
        "programs",
        [],
        "With --compiler=tpu or gpu: only programs whose name begins like this, such as 'training'.",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "suggest",
        False,
        "Try meshes, recomputation and sizes of the loss chunks, by compiling the training step with each, and print "
        "the fastest that fits.",
        flag_values=values,
    )
    flags.DEFINE_string("out", "", "JSON file to write the plans to (a list).", flag_values=values)
    return values


def plan_job(values: flags.FlagValues) -> str:
    """Plans the job of a configuration on every machine that was named.

    Args:
      values: the parsed flags.

    Returns:
      the plan as text, or a table of several.

    Raises:
      ValueError, OSError: a machine, setting or architecture that is not possible.
    """
    config = values.config
    if config is None:
        raise ValueError("--config is missing, expected a file or a name such as batch; see --help")
    if not values.devices:
        raise ValueError("--devices is missing, expected KIND-COUNT, such as --devices=v5e-16")
    if values.suggest and (values.context_tokens or values.programs):
        raise ValueError(
            "--suggest compiles the training step alone; leave out --context_tokens and --programs, and plan with "
            "them and the settings that it finds"
        )
    if values.out:
        files.check_output(values.out)
    machines = [read_machine(name) for name in values.devices]
    workload = workload_of(read_settings(config))
    compiler = _installed(values.compiler)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", max(machine.count for machine in machines))
    backend.prepare(cache_directory() / "compiled" if config.compilation_cache else None)
    file = config_flags.get_config_filename(values["config"])
    architecture = read_architecture(values.architecture, file, config.model)
    if values.suggest:
        return _suggested(values, machines, workload, architecture, compiler)
    if compiler != "cpu":
        return _compiled(values, machines, workload, architecture)
    plans, remarks = [], []
    for machine in machines:
        given = workload, architecture, machine, jax.devices()[: machine.count], values.context_tokens
        plans.append(make_plan(*given))
        remarks.append("fits" if plans[-1]["fits"] else suggestion(*given))
    if values.out:
        files.write_json(values.out, plans)
    if len(plans) > 1:
        return plan_table(plans, remarks)
    return describe_plan(plans[0]) + ("" if plans[0]["fits"] else f"\n{remarks[0]}")


def _installed(compiler: str) -> str:
    """The compiler, or the CPU's where it is not installed, which is said."""
    try:
        check_installed(compiler)
    except CompilerMissingError as error:
        print(f"{error}; planned from this CPU's compiler instead", file=sys.stderr)
        return "cpu"
    return compiler


def _compiled(
    values: flags.FlagValues, machines: Sequence[Machine], workload: Workload, architecture: ModelConfig
) -> str:
    """All programs of the job, by the compiler of the devices, as text."""
    plans = []
    for machine in machines:
        progress = functools.partial(logging.info, "compiling for %s: %s", machine.name)
        chosen = values.context_tokens, tuple(values.programs), progress
        plans.append(compiled_plan(workload, architecture, machine, values.compiler, *chosen))
    if values.out:
        files.write_json(values.out, plans)
    return "\n\n".join(map(describe_compiled, plans))


def _suggested(
    values: flags.FlagValues,
    machines: Sequence[Machine],
    workload: Workload,
    architecture: ModelConfig,
    compiler: str,
) -> str:
    """Settings that were tried on every machine, as text."""
    texts, records = [], []
    for machine in machines:
        progress = functools.partial(logging.info, "compiling for %s %s", machine.name)
        choices = fastest_settings(workload, architecture, machine, compiler, progress)
        texts.append(describe_choices(machine, compiler, choices))
        records.append({"machine": machine.name, "compiler": compiler, "choices": choice_records(choices)})
    if values.out:
        files.write_json(values.out, records)
    return "\n\n".join(texts)


def _run(arguments: list[str]) -> None:
    values = define_flags(arguments)
    rest = command.parse_command(values, arguments, __doc__)[1:]
    if rest:
        raise ValueError(f"unexpected arguments: {' '.join(rest)}; settings are given as --config.NAME=VALUE")
    print(plan_job(values))


def main(argv: list[str] | None = None) -> None:
    """Reads the command line and prints the plan; ends the process with 1 for bad input.

    Args:
      argv: the arguments without the program's name; None means those of the process.
    """
    command.run(_run, ["selfparam plan", *(sys.argv[1:] if argv is None else argv)])
