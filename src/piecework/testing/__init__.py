"""What tests of Piecework, and of what is built on it, are made with.

`plugin` is what pytest loads: the fixtures `app`, `workspace`, `clean_workspace` and `clock`.

`clock` is time that moves when told to. `contracts` is the suite that every store has to pass: read it to learn what
a store promises. `verbs` and `rows` speak to a store in the words of its verbs, `invariants` looks whether what is
stored can be true; the `promises_*` files are the suite's parts. `interleaving` steps verbs against each other on
PostgreSQL, `crashing` kills them at every request, `model` plays random histories against plain dictionaries. May
import everything below `app`; `plugin` imports `app` too. pytest is needed.
"""

pytest_plugins = ("piecework.testing.plugin",)
"""So that `-p piecework.testing` loads it where the package is not installed."""
