"""Plans a job: `python -m selfparam_jax.plan --config=FILE --devices=v5e-16`."""

import jax
from absl import app, flags
from ml_collections import config_flags

from selfparam_jax import backend, command, files, hub, jobs
from selfparam_jax.plan import describe, make_plan, read_architecture, read_machine, suggestion, table

CONFIG = config_flags.DEFINE_config_file("config", None, "Configuration, FILE or FILE:argument.", lock_config=True)
DEVICES = flags.DEFINE_list("devices", None, "KIND-COUNT, as v5e-16, v4-8, h100-8 or h200-1; several give a table.")
ARCHITECTURE = flags.DEFINE_string("architecture", "", "A config.json in Hugging Face's layout.")
CONTEXT_TOKENS = flags.DEFINE_integer(
    "context_tokens", 0, "Tokens of the longest context: plans what the teacher needs to read it, too.", lower_bound=0
)
OUT = flags.DEFINE_string("out", "", "Write the numbers to this JSON file, too (a list of plans).")
flags.mark_flags_as_required(["config", "devices"])


def plan_job() -> str:
    """Reads the flags and plans."""
    machines, config = [read_machine(name) for name in DEVICES.value], CONFIG.value
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", max(machine.count for machine in machines))
    backend.prepare(hub.cache_directory() / "compiled" if config.compilation_cache else None)
    settings = jobs.read_settings(config)
    file = config_flags.get_config_filename(flags.FLAGS["config"])
    architecture = read_architecture(ARCHITECTURE.value, file, config.model)
    plans, remarks = [], []
    for machine in machines:
        devices = jax.devices()[: machine.count]
        given = settings, architecture, machine, devices, CONTEXT_TOKENS.value
        plans.append(make_plan(*given))
        fits = plans[-1]["fits"]
        remarks.append("fits" if fits else suggestion(*given))
    if OUT.value:
        files.write_json(OUT.value, plans)
    if len(plans) > 1:
        return table(plans, remarks)
    return describe(plans[0]) + ("" if plans[0]["fits"] else f"\n{remarks[0]}")


def main(argv: list[str]) -> None:
    """Prints the plan."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}; settings are given as --config.NAME=VALUE")
    print(command.run(plan_job))


if __name__ == "__main__":
    app.run(main)
