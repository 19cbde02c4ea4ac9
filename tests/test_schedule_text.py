"""A few schedules as loop IR text."""

from __future__ import annotations

from schedule_graphs import build, f32
from tracegrad.backends.machine import SMALL
from tracegrad.backends.schedule import schedule
from tracegrad.ir.loop_text import print_program

BIAS = """program "bias" {
  input x: f32[3,6]
  input b: f32[6]
  output relu: f32[3,6]
  returns relu
  kernel "k0_add" "add+relu" flops=36 bytes=168 {
    for i0 in 3 serial {
      for i1v in 4 vector {
        let add: f32 = x[6*i0 + i1v] + b[i1v]
        relu[6*i0 + i1v] = select(add < f32:0.0, f32:0.0, add)
      }
      for i1v_1 in 2 vector {
        let add_1: f32 = x[6*i0 + i1v_1 + 4] + b[i1v_1 + 4]
        relu[6*i0 + i1v_1 + 4] = select(add_1 < f32:0.0, f32:0.0, add_1)
      }
    }
  }
}
"""

SUM = """program "sum" {
  input x: f32[5,8]
  output mul: f32[5]
  returns mul
  kernel "k0_sum" "sum+mul" flops=45 bytes=180 {
    for o in 5 serial {
      alloc register add: f32[8]
      for u in 2 unroll {
        for v in 4 vector {
          add[4*u + v] = f32:0.0
        }
      }
      for u_1 in 2 unroll {
        for rv in 4 vector {
          add[4*u_1 + rv] = add[4*u_1 + rv] + x[8*o + 4*u_1 + rv]
        }
      }
      for v_1 in 4 vector {
        add[v_1] = add[v_1] + add[v_1 + 4]
      }
      let add_1: f32 = reduce.add(v_2 in 4: add[v_2])
      mul[o] = add_1*f32:0.5
    }
  }
}
"""


def test_golden_bias() -> None:
    graph = build("bias", {"x": f32(3, 6), "b": f32(6)}, lambda b, x, c: b.relu(b.add(x, c)))
    assert print_program(schedule(graph, SMALL)) == BIAS


def test_golden_sum() -> None:
    graph = build("sum", {"x": f32(5, 8)}, lambda b, x: b.mul(b.sum(x, axes=(1,)), b.const(0.5)))
    assert print_program(schedule(graph, SMALL)) == SUM
