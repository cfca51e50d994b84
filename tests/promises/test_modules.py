from __future__ import annotations

import asyncio
import importlib
import os
import sys
from dataclasses import replace

import pytest

from piecework import App, Settings
from piecework.errors import AppImportError, ClosedError, CrashedError, ValidationError
from piecework.process import linux

from .flows import ended

needs_workers = pytest.mark.skipif(not linux.can_run_workers(), reason="workers need pidfds")
QUICK = Settings(space_grace_seconds=0.2, close_timeout_seconds=2)

APP = """
from piecework import App

log = []
app = App("modular", modules=("{package}.services", "{package}.work"))
"""
SERVICES = """
from {package}.app import app, log

log.append("services")

@app.service(scope="app", lazy=False)
def greeting():
    log.append("built")
    return "hello"
"""
WORK = """
import os

from piecework import Stage, Success, Workflow
from {package}.app import app, log

log.append("work")

async def greet(ctx):
    return {{"said": await ctx.require("greeting")}}

app.workflow(Workflow("greets", on="come", stages=[Stage("only", steps=[greet])]))

@app.piece("greeter", every_seconds=3600)
async def greeter(piece):
    return Success({{"said": piece.greeting, "log": log, "pid": os.getpid()}})
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Writes a package, of modules by their names, that workers find too; answers how to import one."""
    name = f"modular_{os.getpid()}_{tmp_path.name.replace('-', '_')}"
    folder = tmp_path / name
    folder.mkdir()
    monkeypatch.syspath_prepend(tmp_path)

    def write(**modules):
        for module, text in {"__init__": "", "app": APP, **modules}.items():
            (folder / f"{module}.py").write_text(text.format(package=name))
        importlib.invalidate_caches()
        return importlib.import_module(f"{name}.app")

    yield write
    for module in [module for module in sys.modules if module.split(".")[0] == name]:
        del sys.modules[module]


@needs_workers
@pytest.mark.covers("N90")
async def test_the_modules_of_an_app_are_imported_first(package, store):
    """An app's modules are imported once, in their order, before its services; workers import them too."""
    module = package(services=SERVICES, work=WORK)
    app = module.app
    app.configure(store=store, settings=QUICK)
    assert module.log == []
    async with app:
        assert module.log == ["services", "work", "built"]
        assert (await ended(app, await app.publish("come"))).unwrap().state["said"] == "hello"
        await app.pieces.register(space="acme", piece_id="p", integration="greeter")
        update = (await app.pieces.runs("acme", "p"))[-1]
        (await app.runtime.wait(update.run_id, timeout_seconds=25)).unwrap()
        told = (await app.pieces.runs("acme", "p"))[-1].result
        assert told["pid"] != os.getpid()
        assert (told["said"], told["log"]) == ("hello", ["services", "work", "built"])
    async with app:
        assert module.log == ["services", "work", "built", "built"]


@pytest.mark.covers("N90")
async def test_a_client_imports_them_too(package, make_app, store):
    """A client has what the app's modules declare."""
    module = package(services=SERVICES, work=WORK)
    module.app.configure(store=store)
    async with make_app(), module.app.open(role="client") as client:
        assert module.log[:2] == ["services", "work"]
        assert await client.run_in_new_workspace(lambda greeting: greeting) == "hello"


@pytest.mark.covers("N91")
@pytest.mark.parametrize("role", ["node", "client"])
async def test_a_module_that_fails_is_named(package, store, make_app, role):
    """When a module raises, the app does not open: the error names the module, what it raised, and where."""
    module = package(services=SERVICES, work="import os\n\nraise OSError('no such host')\n")
    module.app.configure(store=store)
    told = r"\.work' of app 'modular'.*OSError: no such host \(.*work\.py:3\)"
    with pytest.raises(AppImportError, match=told) as caught:
        async with module.app.open(role):
            raise AssertionError
    assert isinstance(caught.value.__cause__, OSError)
    assert module.log == ["services"]
    with pytest.raises(ClosedError):
        _ = module.app.container
    async with make_app() as other:  # the store is free
        assert other.store.url


@pytest.mark.covers("N91")
@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("def (", r"SyntaxError.*work\.py:1\)"),
        ("import no_such_library", r"No module named 'no_such_library' \(.*work\.py:1\)"),
        ("raise SystemExit('bye')", r"SystemExit: bye"),
    ],
)
async def test_a_module_that_cannot_be_imported_is_named(package, store, text, told):
    """However a module fails, the error says which it is, why, and in which line."""
    module = package(services=SERVICES, work=text)
    module.app.configure(store=store)
    with pytest.raises(AppImportError, match=rf"importing module '\w+\.work' of app 'modular' .*{told}"):
        async with module.app:
            raise AssertionError


@pytest.mark.covers("N91")
async def test_a_module_that_is_misspelt_is_named(package, store):
    """A module that is not there is named, with the nearest of its package."""
    module = package(servces=SERVICES, work=WORK)
    module.app.configure(store=store)
    told = r"\.services' of app 'modular' .* is not there: .*did you mean .*\.servces'"
    with pytest.raises(AppImportError, match=told):
        async with module.app:
            raise AssertionError
    for name in ("no_such_package", "no_such_package.services"):
        with pytest.raises(AppImportError, match=rf"'{name}' of app 'x' .*look at its spelling"):
            async with App("x", store=store, modules=[name]):
                raise AssertionError


@needs_workers
@pytest.mark.covers("N91")
async def test_a_module_that_fails_in_a_worker_is_told(package, store):
    """A module that can only be imported on the node breaks the space, which tells the module and the reason."""
    fails = "from piecework.process import inside\nif inside():\n    raise OSError('no such host')\n" + SERVICES
    module = package(services=fails, work=WORK)
    module.app.configure(store=store, settings=replace(QUICK, crash_loop_limit=1))
    async with module.app as app:
        await app.pieces.register(space="acme", piece_id="p", integration="greeter")
        with pytest.raises(CrashedError, match=r"services.*no such host"):
            await app.pieces.run_now("acme", "p", wait=True)
        assert (await app.pieces.get("acme", "p")).consecutive_failures == 0


@pytest.mark.covers("N91")
@pytest.mark.parametrize("modules", ["newsroom.services", [3], ["newsroom services"], [".services"], [""]])
def test_what_names_no_module_is_refused(modules):
    """One text instead of several, and what is no module's name, is refused when the app is made."""
    with pytest.raises(ValidationError, match="modules="):
        App("x", modules=modules)


async def test_a_service_may_be_eager_limited_and_tried_again(make_app):
    """A service declared by the decorator may be built when the app opens, have a time limit, and be tried again."""
    log, app = [], make_app()

    @app.service(scope="app", lazy=False, retries=2)
    def shaky():
        log.append("tried")
        if len(log) < 3:
            raise OSError("not yet")
        return "steady"

    @app.service(scope="run", timeout_seconds=0.01)
    async def slow():
        await asyncio.Event().wait()

    async with app:
        assert log == ["tried"] * 3
        async with app.workspace() as ws:
            assert ws.shaky == "steady"
            with pytest.raises(TimeoutError, match="slow"):
                await ws.require("slow")


@pytest.mark.parametrize("wrong", [{"retries": -1}, {"timeout_seconds": 0}, {"scope": "run", "lazy": False}])
def test_a_wrong_number_of_a_service_is_refused(wrong):
    """A number that is none, and lazy=False where it could not be kept, is refused where the service is declared."""
    with pytest.raises(ValidationError):
        App("x").service(**{"scope": "app", **wrong})(lambda: 1)
