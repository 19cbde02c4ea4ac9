from test_schedule import *
from test_schedule import graphs as _g
from tracegrad.backends.llvm.compile import compile_program
import sys
N=int(__import__('os').environ.get('NEX','150'))
@settings(max_examples=N)
@given(_g(), st.sampled_from(MACHINES), st.booleans())
def test_native(graph, machine, tiny):
    rng = np.random.default_rng(0)
    arrays = [rng.uniform(-1, 1, v.type.shape).astype(np.float32) if v.type.dtype is float32 else rng.integers(0, 1, v.type.shape) for v in graph.inputs]
    old = planning.TINY, planning.TINY_REDUCE
    try:
        if not tiny: planning.TINY = planning.TINY_REDUCE = 0
        graph=optimize(graph)
        p=schedule(graph,machine)
    finally:
        planning.TINY, planning.TINY_REDUCE = old
    nat=compile_program(p,use_cache=False)
    outputs, updates = evaluate(graph, arrays)
    for serial in (True,False):
        mine=[np.array(a,order='C') for a in arrays]
        got=nat.call(mine,serial=serial)
        for g,w in zip(got,outputs): assert_close(g,np.asarray(w),print_program(p))
        changed=list(graph.updates)
        for v,a,o in zip(graph.inputs,mine,arrays):
            want=updates[changed.index(v)] if v in changed else o
            assert_close(a,np.asarray(want),print_program(p))
@settings(max_examples=N//2)
@given(st.sampled_from(SPECS), st.data(), st.sampled_from(MACHINES))
def test_native_contraction(spec, data, machine):
    operands, out = spec.split("->"); x, y = operands.split(",")
    sizes = {c: data.draw(st.sampled_from([1, 2, 3, 5, 8, 14, 16, 17, 33, 64,100])) for c in sorted(set(x + y))}
    while np.prod(list(sizes.values())) > 300000: sizes[max(sizes, key=lambda c: sizes[c])] = 3
    types = {"x": f32(*[sizes[c] for c in x]), "y": f32(*[sizes[c] for c in y]), "bias": f32(sizes[out[-1]])}
    graph = build("c", types, lambda b,p,q,c: b.relu(b.add(b.contract(p,q,spec=spec),c)))
    p=schedule(graph,machine); nat=compile_program(p,use_cache=False)
    a=arrays_for(graph); want,_=evaluate(graph,a)
    for serial in (True,False):
        got=nat.call(a,serial=serial)
        assert_close(got[0],np.asarray(want[0]),print_program(p))
