"""Bridges: Piecework's services inside FastAPI, and the services of svcs and dishka inside Piecework.

Promises: each is an optional part in a module of its own, which says what to install when its library is not there;
nothing else of Piecework imports one. A bridge owns nothing that it did not make.
Read `fastapi`, or `foreign` and then `svcs` and `dishka`. May import what an application may import.
"""
