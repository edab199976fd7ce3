"""`python -m selfparam_jax.recommend score ...`: scores recommendations; see `commands.recommend`."""

from selfparam_jax.commands.recommend import main

if __name__ == "__main__":
    main()
