"""Programs by content: equal code compiles nothing again, a change of what it names is noticed."""

import functools
import gc
import sys
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from compile_count import compiles

from feynkac import ppl
from feynkac.ppl.code import Fingerprints
from feynkac.ppl.compiled import compiled
from feynkac.ppl.fingerprint import fingerprint

KEY = jax.random.key(0)
TRACED = []


@compiled
def value(program, *args):
    TRACED.append(program)
    return program.simulate(KEY, *args).log_weight


def notebook(**names):
    return dict(
        ppl=ppl, dist=dist, jnp=jnp, jax=jax, functools=functools, __name__="cells", **names
    )


def run(source, names, *args):
    """Execute a cell and run its program f; the value and whether it was traced."""
    exec(source, names)
    before = len(TRACED)
    out = value(names["f"], *args)
    return float(out), len(TRACED) - before


PLAIN = """
@ppl.program
def f(ctx):
    ctx.factor("a", {})
"""

# (definitions, expression, definitions that change it)
SOURCES = {
    "global scalar": ("c = 1.0", "c", "c = 2.0"),
    "global array": ("c = jnp.array([1.0])", "c[0]", "c = jnp.array([2.0])"),
    "global dict": ("c = {'k': [1.0]}", "c['k'][0]", "c['k'][0] = 2.0"),
    "global set": ("c = {1.0}", "max(c)", "c.add(2.0)"),
    "int and float": ("c = 1", "jnp.asarray(c).dtype.itemsize + isinstance(c, float)", "c = 1.0"),
    "sign of zero": ("c = 0.0", "1.0 if str(c) == '0.0' else 2.0", "c = -0.0"),
    "undefined": ("", "1.0 if 'c' not in globals() else c", "c = 2.0"),
    "helper": ("def c(): return 1.0", "c()", "def c(): return 2.0"),
    "helper of helper": ("def d(): return 1.0\ndef c(): return d()", "c()", "def d(): return 2.0"),
    "tuple constant": (
        "def c(): return (1, 1)",
        "float(isinstance(c()[0], float))",
        "def c(): return (1.0, 1)",
    ),
    "recursion": (
        "def c(n): return k if n == 0 else d(n - 1)\ndef d(n): return c(n)\nk = 1.0",
        "c(3)",
        "k = 2.0",
    ),
    "default": ("def c(x=1.0): return x", "c()", "def c(x=2.0): return x"),
    "keyword default": ("def c(*, x=1.0): return x", "c()", "c.__kwdefaults__['x'] = 2.0"),
    "function attribute": ("def c(): return c.k\nc.k = 1.0", "c()", "c.k = 2.0"),
    "closure": (
        "def make(k):\n    return lambda: k\nc = make(1.0)",
        "c()",
        "c = make(2.0)",
    ),
    "closure of a closure": (
        "def make(k):\n    inner = lambda: k\n    return lambda: inner()\nc = make(1.0)",
        "c()",
        "c = make(2.0)",
    ),
    "cell": (
        "def make():\n    k = [1.0]\n    def get(): return k[0]\n    get.k = k\n    return get\n"
        "c = make()",
        "c()",
        "c.k[0] = 2.0",
    ),
    "partial": (
        "c = functools.partial(lambda x: x, 1.0)",
        "c()",
        "c = functools.partial(lambda x: x, 2.0)",
    ),
    "partial keywords": (
        "c = functools.partial(lambda *, x: x, x=1.0)",
        "c()",
        "c = functools.partial(lambda *, x: x, x=2.0)",
    ),
    "comprehension": ("c = 1.0", "sum([sum([c for _ in range(1)]) for _ in range(1)])", "c = 2.0"),
    "nested lambda": ("c = 1.0", "(lambda: (lambda: c)())()", "c = 2.0"),
    "class attribute": ("class C:\n    c = 1.0", "C.c", "C.c = 2.0"),
    "inherited class attribute": ("class B: c = 1.0\nclass C(B): pass", "C.c", "B.c = 2.0"),
    "instance attribute": ("class C: pass\nc = C()\nc.k = 1.0", "c.k", "c.k = 2.0"),
    "slot": ("class C: __slots__ = ('k',)\nc = C()\nc.k = 1.0", "c.k", "c.k = 2.0"),
    "method": (
        "class C:\n    k = 1.0\n    def m(self): return self.k\nc = C().m",
        "c()",
        "C.k = 2.0",
    ),
    "replaced method": (
        "class C:\n    def m(self): return 1.0\nc = C()",
        "c.m()",
        "C.m = lambda self: 2.0",
    ),
    "property": (
        "k = 1.0\nclass C:\n    @property\n    def p(self): return k\nc = C()",
        "c.p",
        "k = 2.0",
    ),
    "static method": (
        "k = 1.0\nclass C:\n    @staticmethod\n    def p(): return k",
        "C.p()",
        "k = 2.0",
    ),
    "namespace": (
        "import types\nc = types.SimpleNamespace(k=1.0)",
        "c.k",
        "c.k = 2.0",
    ),
    "dataclass": (
        "import dataclasses\n@dataclasses.dataclass\nclass C:\n    k: float\nc = C(1.0)",
        "c.k",
        "c.k = 2.0",
    ),
    "enum": (
        "import enum\nclass C(enum.Enum):\n    k = 1.0",
        "C.k.value",
        "class C(enum.Enum):\n    k = 2.0",
    ),
    "jitted": ("c = jax.jit(lambda: 1.0)", "c()", "c = jax.jit(lambda: 2.0)"),
    "jitted helper": ("k = 1.0\n@jax.jit\ndef c(): return k", "c()", "k = 2.0\njax.clear_caches()"),
    "vmapped": (
        "k = 1.0\nc = jax.vmap(lambda x: x + k)",
        "c(jnp.zeros(1))[0]",
        "k = 2.0",
    ),
    "cached": ("k = 1.0\n@functools.cache\ndef c(): return k", "c()", "k = 2.0\nc.cache_clear()"),
    "distribution": (
        "c = dist.Normal(1.0, 1.0)",
        "c.mean",
        "c = dist.Normal(2.0, 1.0)",
    ),
    "distribution changed in place": (
        "c = dist.Normal(1.0, 1.0).expand((2,))",
        "c.mean[0]",
        "c.base_dist.loc = jnp.asarray(2.0)",
    ),
    "partial changed in place": (
        "c = functools.partial(lambda *, x: x, x=1.0)",
        "c()",
        "c.keywords['x'] = 2.0",
    ),
    "array in a list": (
        "import numpy as np\nc = [np.ones(2)]",
        "float(c[0][1])",
        "c[0][1] = 2.0",
    ),
    "program": (
        "c = ppl.program(lambda ctx: ctx.factor('b', k))\nk = 1.0",
        "ctx.call('c', c) or 0.0",
        "k = 2.0",
    ),
    "bound program": (
        "c = ppl.bind(lambda ctx, k: ctx.factor('b', k), 1.0)",
        "ctx.call('c', c) or 0.0",
        "c = ppl.bind(lambda ctx, k: ctx.factor('b', k), 2.0)",
    ),
    "program in a combinator": (
        "k = 1.0\nc = ppl.mask(lambda ctx: ctx.factor('b', k))",
        "ctx.call('c', c, jnp.array(True)) or 0.0",
        "k = 2.0",
    ),
    "import inside": (
        "import user_module\nuser_module.k = 1.0\ndef c():\n    import user_module\n"
        "    return user_module.k",
        "c()",
        "user_module.k = 2.0",
    ),
    "module attribute": (
        "import user_module\nuser_module.k = 1.0",
        "user_module.k",
        "user_module.k = 2.0",
    ),
    "module function": (
        "import user_module\nuser_module.g = lambda: 1.0",
        "user_module.g()",
        "user_module.g = lambda: 2.0",
    ),
    "custom gradient": (
        "k = 1.0\n@jax.custom_jvp\ndef c(x): return x + k\nc.defjvps(lambda t, o, x: t)",
        "c(0.0)",
        "k = 2.0",
    ),
}


@pytest.fixture
def user_module():
    module = types.ModuleType("user_module")
    module.__file__ = "somewhere/user_module.py"
    sys.modules["user_module"] = module
    yield module
    del sys.modules["user_module"]


@pytest.mark.parametrize("case", SOURCES)
def test_change_is_noticed_and_repetition_is_not(case, user_module):
    before, expression, change = SOURCES[case]
    names = notebook()
    source = PLAIN.format(expression)
    exec(before, names)
    first, traced = run(source, names)
    assert traced == 1
    assert run(source, names) == (first, 0)  # the cell of the program alone
    assert run("\n\n# moved\n" + source, names) == (first, 0)
    exec(before, names)  # all cells again; a new class is a new type only where it is one
    assert run(source, names) == (first, 0)
    exec(change, names)
    second, traced = run("", names)
    assert second != first and traced == 1
    assert second == float(names["f"].simulate(KEY).log_weight)
    exec(before if before else "del c", names)
    assert run(source, names)[0] == first


def test_changed_code():
    names = notebook()
    for constant in ("1.0", "2.0", "1", "-0.0", "0.0", "(1.0, 2.0)[1]", "1.0 + 1.0"):
        expected = float(eval(constant))
        assert run(PLAIN.format(constant), names)[0] == expected
    assert run(PLAIN.format("2.0 if True else 3.0"), names)[0] == 2.0


def test_array_changed_in_place():
    table = np.ones(2, np.float32)
    program = ppl.program(lambda ctx: ctx.factor("a", table[0]))
    assert value(program) == 1.0
    table[0] = 2.0
    assert value(program) == 2.0


def test_a_digest_is_taken_anew_only_where_something_has_changed():
    names = notebook(TABLE=np.ones(2), PRIOR=dist.Normal(0.0, 1.0))
    exec(
        "k = [1.0]\ndef c(): return k[0] + TABLE[0]\n"
        "f = ppl.program(lambda ctx: ctx.factor('a', c() + PRIOR.mean))",
        names,
    )
    code = names["f"].code._static
    first = code.content()
    assert code.content() is first
    names["unrelated"] = 1.0
    assert code.content() is first
    names["k"][0] = 2.0
    second = code.content()
    assert second != first and code.content() is second
    names["TABLE"][0] = 3.0
    assert code.content() not in (first, second)


def test_objects_that_reuse_an_address():
    for i in range(5):
        holder = [np.full(3, i, np.float32), {"scale": float(i)}]
        program = ppl.program(lambda ctx, h=holder: ctx.factor("a", h[0][0] + h[1]["scale"]))
        assert value(program) == 2.0 * i
        del holder, program
        gc.collect()


def test_traced_closure():
    def outer(x):
        return value(ppl.program(lambda ctx: ctx.factor("a", 2.0 * x)))

    jitted = jax.jit(outer)
    assert jitted(1.0) == 2.0 and jitted(3.0) == 6.0
    assert jax.jit(lambda x: outer(x) + 1.0)(1.0) == 3.0
    np.testing.assert_array_equal(jax.vmap(outer)(jnp.arange(3.0)), [0.0, 2.0, 4.0])
    assert jax.grad(outer)(1.0) == 2.0


@pytest.mark.parametrize("make", [np.array, jnp.array], ids=["numpy", "jax"])
def test_equal_closures_compile_nothing(make):
    def program(table):
        return ppl.program(lambda ctx: ctx.factor("a", table[0]))

    tables = [make([1.0, 2.0], np.float32) for _ in range(2)] + [make([1.0, 3.0], np.float32)]
    programs = [program(t) for t in tables]
    value(programs[0])
    with compiles() as c:
        value(programs[1])
    assert c.count == 0, c.names
    before = len(TRACED)
    value(programs[2])
    assert len(TRACED) == before + 1


def test_bound_values_compile_nothing():
    def body(ctx, a, b):
        ctx.factor("a", a.sum() * b)

    arrays = [jnp.full(3, float(i)) for i in range(3)]
    programs = [ppl.bind(body, a, i + 1) for i, a in enumerate(arrays)]
    programs += [ppl.bind(ppl.bind(body, arrays[1]), 7)]
    value(programs[0])
    with compiles() as c:
        results = [value(p) for p in programs]
    assert c.count == 0, c.names
    np.testing.assert_array_equal(results, [0.0, 6.0, 18.0, 21.0])


def test_numbers_and_state_spaces_compile_nothing():
    def model(scale):
        def init(ctx, s):
            return jnp.zeros(())

        def step(ctx, state, t, s):
            ctx.factor("f", s * 1.0)
            return state + 1.0

        done = lambda state: state > 10.0  # noqa: E731
        return ppl.bind(ppl.StateSpace(init, step, 3, done), scale)

    models = [model(1.0), model(2.0)]
    value(models[0])
    with compiles() as c:
        assert value(models[1]) == 6.0
    assert c.count == 0, c.names


def test_mutual_recursion_and_cycles_end():
    names = notebook()
    exec(
        "def a(): return b()\ndef b(): return a()\nc = [a]\nc.append(c)\nd = lambda: (a, c)", names
    )
    first = fingerprint(names["d"])
    assert first == fingerprint(names["d"])
    hash(first)


def test_shared_helpers_do_not_multiply():
    names = notebook()
    exec("def h0(): return 1.0", names)
    for i in range(1, 40):
        exec(f"def h{i}(): return (h{i - 1}, h{max(i - 2, 0)})", names)
    assert len(fingerprint(names["h39"])) < 1000


def test_libraries_are_not_entered():
    program = ppl.program(lambda ctx: ctx.sample("x", dist.Normal(jnp.zeros(3).sum(), 1.0)))
    assert len(fingerprint(program)) < 60


@pytest.fixture
def typical():
    names = notebook(SCALE=2.0, TABLE=jnp.ones((10, 10)))
    exec(
        """
@ppl.program
def emission(ctx, z): ctx.observe("y", dist.Normal(z, SCALE), 1.0)
def init(ctx, lm): return ctx.sample("z0", dist.Normal(0.0, SCALE))
def step(ctx, state, t, lm):
    z = ctx.sample("z", dist.Normal(state + TABLE[0, 0], SCALE))
    ctx.call("e", emission, z)
    return z
model = ppl.bind(ppl.StateSpace(init, step, 5, lambda s: s > 9.0), jnp.ones(3))
""",
        names,
    )
    return names["model"]


def test_a_fingerprint_takes_microseconds(typical):
    target = ppl.Target(typical)
    Fingerprints.of(target)
    times = []
    for _ in range(200):
        start = time.process_time()
        Fingerprints.of(target)
        times.append(time.process_time() - start)
    # About 0.2 ms; the bound only tells it from a walk through a library, which takes seconds.
    assert min(times) < 5e-3
