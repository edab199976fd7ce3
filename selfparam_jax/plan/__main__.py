"""`python -m selfparam_jax.plan --config=FILE --devices=v5e-16`: see `commands.plan`."""

from selfparam_jax.commands.plan import main

if __name__ == "__main__":
    main()
