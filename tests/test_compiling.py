"""How programs are compiled: the same values, in and outside of other transformations."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxtransfer as jt
from jaxtransfer import compiling
from jaxtransfer.compiling import compiler_options, jit
from jaxtransfer.errors import OutputError

NAMES = {
    "xla_cpu_experimental_ynn_fusion_type",
    "xla_cpu_scheduler_type",
    "xla_cpu_copy_insertion_use_region_analysis",
}
on_cpu = pytest.mark.skipif(jax.default_backend() != "cpu", reason="options are those of CPUs")


def convolution(images: jax.Array, kernel: jax.Array) -> jax.Array:
    axes = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(images, kernel, (1, 1), "SAME", dimension_numbers=axes)


@pytest.fixture(scope="module")
def inputs() -> tuple[jax.Array, jax.Array]:
    keys = jax.random.split(jax.random.key(0))
    shapes = ((8, 16, 16, 32), (3, 3, 32, 32))  # large enough for the library
    return tuple(jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True))


@on_cpu
def test_a_network_may_be_compiled_with_the_options(inputs):
    options = compiler_options()
    assert set(options) == NAMES
    found = jax.jit(convolution, compiler_options=options)(*inputs)
    np.testing.assert_allclose(found, jax.jit(convolution)(*inputs), rtol=1e-4, atol=1e-4)


@on_cpu
def test_convolutions_are_not_given_to_the_library_and_products_are(inputs):
    def program(*inputs):
        return convolution(*inputs), inputs[0].reshape(-1, 32) @ inputs[1][0, 0]

    def text(jitted):
        return jitted.lower(*inputs).compile().as_text()

    assert "__ynn_fusion" in text(jax.jit(convolution))
    assert "__ynn_fusion" not in text(jit(convolution))
    assert "__ynn_fusion" in text(jit(program))


@on_cpu
@pytest.mark.parametrize("name", sorted(NAMES))
def test_what_the_flags_say_is_left_to_them(name, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", f"--{name}=whatever")
    assert set(compiler_options()) == NAMES - {name}


@on_cpu
def test_a_training_step_takes_less_memory():
    model = jt.init("cifar_resnet8", width=8, input_size=(16, 16), num_classes=3)
    plan = jt.full(model)
    tx = plan.optimizer(0.01)
    step = jt.make_train_step(model.apply, jt.cross_entropy(), tx, plan)
    batch = {"image": jnp.ones((32, 16, 16, 3)), "label": jnp.zeros(32, jnp.int32)}
    lowered = step.lower(jt.init_state(model, plan, tx), batch)

    def mebibytes(options):
        memory = lowered.compile(compiler_options=options).memory_analysis()
        return memory.temp_size_in_bytes / 2**20

    other_order = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_DEFAULT"}
    assert mebibytes({}) < 0.85 * mebibytes(other_order)


@on_cpu
def test_what_a_step_replaces_is_not_copied():
    params = {name: jnp.ones((300, 300)) for name in "ab"}
    network = jt.Model.from_function(lambda params, x: x @ params["a"] @ params["b"], params)
    plan = jt.full(network)
    tx = plan.optimizer(0.01)
    step = jt.make_train_step(network.apply, jt.squared_error(), tx, plan)
    batch = {"image": jnp.ones((2, 300)), "label": jnp.zeros((2, 300))}
    lowered = step.lower(jt.init_state(network, plan, tx), batch)

    def copies(analyses):
        options = {**compiler_options(), "xla_cpu_copy_insertion_use_region_analysis": analyses}
        return lowered.compile(compiler_options=options).as_text().count(" copy(")

    assert copies("True") == 0 < copies("False")


def test_a_version_that_does_not_know_the_options_gets_none(monkeypatch):
    known = compiler_options()
    unknown = {jax.default_backend(): {"xla_no_such_option": "1", **known}}
    monkeypatch.setattr(compiling, "_OPTIONS", unknown)
    assert compiler_options() == known
    assert float(jit(lambda x: x + 1)(1.0)) == 2


def test_other_backends_get_none(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert compiler_options() == {}


@on_cpu
def test_what_runs_once_is_compiled_with_less_effort(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    assert jit(jnp.sin).options() == compiler_options()
    quick = jit(jnp.sin, quickly=True)
    assert quick.options() == {**compiler_options(), "xla_backend_optimization_level": "1"}
    assert float(quick(0.0)) == 0
    assert quick.lower(0.0).compile()(0.0) == 0


def test_the_options_are_a_copy():
    compiler_options()["xla_no_such_option"] = "1"
    assert "xla_no_such_option" not in compiler_options()


@pytest.mark.parametrize(
    "transform",
    [
        jax.jit,
        jax.grad,
        jax.vmap,
        lambda f: jax.jit(jax.grad(f)),
        lambda f: lambda x: jax.lax.scan(lambda c, _: (f(c), None), x, None, length=1)[0],
        lambda f: lambda x: jax.eval_shape(f, x).shape,
    ],
    ids=["jit", "grad", "vmap", "jit of grad", "scan", "eval_shape"],
)
def test_a_program_may_be_transformed(transform):
    def square(x):
        return jnp.sin(x) ** 2

    x = jnp.ones(3) if transform is jax.vmap else 0.5
    np.testing.assert_allclose(transform(jit(square))(x), transform(square)(x), rtol=1e-6)


def test_a_program_takes_what_jit_takes():
    @functools.partial(jit, static_argnames="times", donate_argnums=0)
    def scaled(x, *, times):
        """Documented."""
        return x * times

    assert scaled.__doc__ == "Documented." and scaled.__name__ == "scaled"
    x = jnp.ones(4)
    np.testing.assert_array_equal(scaled(x, times=3), 3 * np.ones(4))
    assert x.is_deleted()


def test_a_program_is_compiled_once_and_then_memory_is_given_back(monkeypatch):
    compiled, given_back = [], []

    def listen(name: str, seconds: float, **_: object) -> None:
        if name == "/jax/core/compile/backend_compile_duration":
            compiled.append(name)

    monkeypatch.setattr(compiling, "LONG_SECONDS", 0.0)
    monkeypatch.setattr(compiling, "_give_back_memory", lambda: given_back.append(len(compiled)))
    program, x = jit(lambda x: jnp.sin(x) * 3), jnp.ones(5)
    compiler_options()
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        for _ in range(3):
            np.testing.assert_allclose(program(x), 3 * np.sin(np.ones(5)), rtol=1e-6)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert len(compiled) == 1 and given_back == [1]


def test_memory_is_given_back_where_the_system_can():
    compiling._give_back_memory()  # elsewhere nothing happens


def test_what_is_compiled_is_found_by_the_next_process(tmp_path):
    folder = tmp_path / "made" / "cache"
    code = (
        "import sys, jax, jax.numpy as jnp, jaxtransfer as jt\n"
        "hits = []\n"
        "jax.monitoring.register_event_listener(lambda name, **_: hits.append(name))\n"
        "jnp.ones(2) + 1\n"  # JAX has looked for a folder before it is told of one
        "print(jt.compilation_cache(sys.argv[1]))\n"
        "jax.jit(lambda x: jnp.sin(x) + 1)(jnp.ones(3))\n"
        "print(hits.count('/jax/compilation_cache/cache_hits'))\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    command = [sys.executable, "-c", code, str(folder)]
    outputs = [
        subprocess.check_output(command, text=True, env=environment).split() for _ in range(2)
    ]
    assert [Path(found) for found, _ in outputs] == [folder, folder]
    assert int(outputs[0][1]) == 0 and int(outputs[1][1]) > 0
    assert folder.stat().st_mode & 0o077 == 0


def test_a_cache_where_no_folder_can_be_is_an_error(tmp_path):
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(OutputError, match="expected a folder that can be written"):
        jt.compilation_cache(file)
