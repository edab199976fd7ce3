"""`python -m selfparam_jax.targets --contexts=DOCUMENTS --out=pairs.jsonl`: see `commands.targets`."""

from selfparam_jax.commands.targets import main

main()
