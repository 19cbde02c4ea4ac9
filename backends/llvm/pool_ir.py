"""The LLVM IR text of the native thread pool. Read by `pool.py` only, which documents the protocol's outside.

How it works. One job runs at a time; whoever sets `busy` owns the job fields. A job is published by storing
its number of tasks in `remaining`; threads (the caller too) claim tasks by lowering it with compare-and-swap
and only then read the job's fields, which cannot change before the claimed tasks are reported in `done`. So a
worker that wakes late can do no harm: either it claims a task of whatever job is current, or nothing.

A worker with nothing to claim spins for a bounded time, then counts itself in `sleepers` and waits on a
condition variable under `mutex`, where it looks at `remaining` once more; the publisher stores `remaining`
before it reads `sleepers` (both sequentially consistent) and takes the mutex before it signals, so no wake-up
is lost. A worker that was asleep wakes two more while tasks are left: waking many threads takes the depth of
a tree. The caller waits for `done` in the same way: spins, then sleeps on a second condition variable.

After a fork the child has no workers but our memory says it has: each entry compares getpid() with the
process that started them and resets everything on a difference.

The state of the floating-point unit (rounding, denormals) travels with the job, so a result can't depend on
the thread.
"""

from __future__ import annotations

from .pool_lifecycle_ir import LIFECYCLE

MAX_THREADS = 1024

_SERIAL = """
define void @tg_parallel_for(ptr %fn, ptr %ctx, i64 %n) {
entry:
  %any = icmp sgt i64 %n, 0
  br i1 %any, label %loop, label %exit
loop:
  %i = phi i64 [ 0, %entry ], [ %next, %loop ]
  call void %fn(ptr %ctx, i64 %i)
  %next = add i64 %i, 1
  %more = icmp slt i64 %next, %n
  br i1 %more, label %loop, label %exit
exit:
  ret void
}
define void @tg_pool_init(i64 %threads, i64 %spins) {
  ret void
}
define i64 @tg_pool_resize(i64 %threads, i64 %spins, i64 %patience) {
  ret i64 1
}
define i64 @tg_pool_workers() {
  ret i64 0
}
define void @tg_pool_pause(i64 %times) {
  ret void
}
"""

_THREADED = """
@remaining = internal global i64 0, align 128
@done = internal global i64 0, align 128
@sleepers = internal global i64 0, align 128
@caller_sleeps = internal global i64 0, align 128
@busy = internal global i64 0, align 128
@stop = internal global i64 0, align 128
@job_fn = internal global ptr null, align 128
@job_ctx = internal global ptr null
@job_n = internal global i64 0
@job_fp = internal global i64 0
@pid = internal global i64 0, align 128
@limit = internal global i64 1
@started = internal global i64 0
@spins = internal global i64 0
@mutex = internal global [256 x i8] zeroinitializer, align 128
@work_cond = internal global [256 x i8] zeroinitializer, align 128
@done_cond = internal global [256 x i8] zeroinitializer, align 128
@threads = internal global [$MAX_THREADS x i64] zeroinitializer, align 128

declare i32 @pthread_create(ptr, ptr, ptr, ptr)
declare i32 @pthread_join(i64, ptr)
declare i32 @pthread_attr_init(ptr)
declare i32 @pthread_attr_setstacksize(ptr, i64)
declare i32 @pthread_attr_destroy(ptr)
declare i32 @pthread_mutex_init(ptr, ptr)
declare i32 @pthread_mutex_lock(ptr)
declare i32 @pthread_mutex_unlock(ptr)
declare i32 @pthread_cond_init(ptr, ptr)
declare i32 @pthread_cond_wait(ptr, ptr)
declare i32 @pthread_cond_signal(ptr)
declare i32 @pthread_cond_broadcast(ptr)
declare i32 @pthread_sigmask(i32, ptr, ptr)
declare i32 @getpid()
declare i32 @usleep(i32)
declare i32 @sched_yield()
declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)
$DECLARATIONS

define void @tg_pool_pause(i64 %times) {
entry:
  br label %loop
loop:
  %i = phi i64 [ 0, %entry ], [ %next, %loop ]
  call void @relax(i64 %i)
  %next = add i64 %i, 1
  %more = icmp ult i64 %next, %times
  br i1 %more, label %loop, label %exit
exit:
  ret void
}

define internal i64 @get_fp() {
$GET_FP
}

define internal void @set_fp(i64 %state) {
$SET_FP
}

; One turn of a spin loop: a pause, and every 128 turns (about 2 us) the CPU for whoever waits for it. A
; thread that was woken on the caller's CPU would otherwise spin there while the caller, with work to do,
; waits.
define internal void @relax(i64 %turn) {
entry:
  $PAUSE
  %part = and i64 %turn, 127
  %due = icmp eq i64 %part, 127
  br i1 %due, label %yield, label %exit
yield:
  %y = call i32 @sched_yield()
  br label %exit
exit:
  ret void
}

; Lets at most %wanted sleeping workers go.
define internal void @wake(i64 %wanted) {
entry:
  %l = call i32 @pthread_mutex_lock(ptr @mutex)
  %u = call i32 @pthread_mutex_unlock(ptr @mutex)
  br label %loop
loop:
  %i = phi i64 [ 0, %entry ], [ %next, %signal ]
  %more = icmp slt i64 %i, %wanted
  br i1 %more, label %signal, label %exit
signal:
  %s = call i32 @pthread_cond_signal(ptr @work_cond)
  %next = add i64 %i, 1
  br label %loop
exit:
  ret void
}

; Runs tasks until none is left to claim, then reports how many it ran.
define internal void @run_tasks() {
entry:
  br label %look
look:
  %count = phi i64 [ 0, %entry ], [ %count, %claim ], [ %total, %ran ]
  %old_n = phi i64 [ 0, %entry ], [ %old_n, %claim ], [ %n, %ran ]
  %left = load atomic i64, ptr @remaining acquire, align 8
  %none = icmp sle i64 %left, 0
  br i1 %none, label %report, label %claim
claim:
  ; A share that shrinks with what is left: few claims for many small tasks, balance at the end.
  %threads = load atomic i64, ptr @limit monotonic, align 8
  %quarter = shl i64 %threads, 2
  %share = udiv i64 %left, %quarter
  %chunk = call i64 @llvm.umax.i64(i64 %share, i64 1)
  %less = sub i64 %left, %chunk
  %pair = cmpxchg ptr @remaining, i64 %left, i64 %less acq_rel monotonic, align 8
  %won = extractvalue { i64, i1 } %pair, 1
  br i1 %won, label %run, label %look
run:
  %fn = load ptr, ptr @job_fn, align 8
  %ctx = load ptr, ptr @job_ctx, align 8
  %n = load i64, ptr @job_n, align 8
  %fp = load i64, ptr @job_fp, align 8
  call void @set_fp(i64 %fp)
  %first = sub i64 %n, %left
  %last = add i64 %first, %chunk
  br label %task
task:
  %i = phi i64 [ %first, %run ], [ %next, %task ]
  call void %fn(ptr %ctx, i64 %i)
  %next = add i64 %i, 1
  %more = icmp slt i64 %next, %last
  br i1 %more, label %task, label %ran
ran:
  %total = add i64 %count, %chunk
  br label %look
report:
  %idle = icmp eq i64 %count, 0
  br i1 %idle, label %exit, label %add
add:
  %before = atomicrmw add ptr @done, i64 %count seq_cst, align 8
  %after = add i64 %before, %count
  %complete = icmp eq i64 %after, %old_n
  br i1 %complete, label %check, label %exit
check:
  %sleeping = load atomic i64, ptr @caller_sleeps seq_cst, align 8
  %asleep = icmp ne i64 %sleeping, 0
  br i1 %asleep, label %signal, label %exit
signal:
  %l = call i32 @pthread_mutex_lock(ptr @mutex)
  %u = call i32 @pthread_mutex_unlock(ptr @mutex)
  %s = call i32 @pthread_cond_signal(ptr @done_cond)
  br label %exit
exit:
  ret void
}

define internal ptr @worker(ptr %unused) {
entry:
  br label %begin
begin:
  %max = load atomic i64, ptr @spins monotonic, align 8
  br label %spin
spin:
  %i = phi i64 [ 0, %begin ], [ %next, %pause ]
  %left = load atomic i64, ptr @remaining monotonic, align 8
  %some = icmp sgt i64 %left, 0
  br i1 %some, label %go, label %ending
ending:
  %end = load atomic i64, ptr @stop monotonic, align 8
  %ends = icmp ne i64 %end, 0
  br i1 %ends, label %exit, label %patient
patient:
  %enough = icmp uge i64 %i, %max
  br i1 %enough, label %lie_down, label %pause
pause:
  call void @relax(i64 %i)
  %next = add i64 %i, 1
  br label %spin
go:
  call void @run_tasks()
  br label %begin
lie_down:
  %l = call i32 @pthread_mutex_lock(ptr @mutex)
  %a = atomicrmw add ptr @sleepers, i64 1 seq_cst, align 8
  br label %sleep
sleep:
  %left2 = load atomic i64, ptr @remaining seq_cst, align 8
  %some2 = icmp sgt i64 %left2, 0
  br i1 %some2, label %get_up, label %ending2
ending2:
  %end2 = load atomic i64, ptr @stop seq_cst, align 8
  %ends2 = icmp ne i64 %end2, 0
  br i1 %ends2, label %get_up, label %wait
wait:
  %w = call i32 @pthread_cond_wait(ptr @work_cond, ptr @mutex)
  br label %sleep
get_up:
  %b = atomicrmw sub ptr @sleepers, i64 1 seq_cst, align 8
  %u = call i32 @pthread_mutex_unlock(ptr @mutex)
  %others = icmp sgt i64 %b, 1
  %worth = icmp sgt i64 %left2, 1
  %both = and i1 %others, %worth
  br i1 %both, label %wake_more, label %begin
wake_more:
  call void @wake(i64 2)
  br label %begin
exit:
  ret ptr null
}

$LIFECYCLE
define void @tg_parallel_for(ptr %fn, ptr %ctx, i64 %n) {
entry:
  %limit = load atomic i64, ptr @limit monotonic, align 8
  %many = icmp sgt i64 %n, 1
  %threads = icmp sgt i64 %limit, 1
  %try = and i1 %many, %threads
  br i1 %try, label %process, label %serial
process:
  %mine = call i1 @mine()
  br i1 %mine, label %grab, label %serial
grab:
  %pair = cmpxchg ptr @busy, i64 0, i64 1 acquire monotonic, align 8
  %won = extractvalue { i64, i1 } %pair, 1
  br i1 %won, label %owner, label %serial
owner:
  %have = load atomic i64, ptr @started monotonic, align 8
  %limit2 = load atomic i64, ptr @limit monotonic, align 8
  %full = sub i64 %limit2, 1
  %missing = icmp slt i64 %have, %full
  br i1 %missing, label %more, label %publish
more:
  call void @start()
  br label %publish
publish:
  store ptr %fn, ptr @job_fn, align 8
  store ptr %ctx, ptr @job_ctx, align 8
  store i64 %n, ptr @job_n, align 8
  %fp = call i64 @get_fp()
  store i64 %fp, ptr @job_fp, align 8
  store atomic i64 0, ptr @done monotonic, align 8
  store atomic i64 %n, ptr @remaining seq_cst, align 8
  %asleep = load atomic i64, ptr @sleepers seq_cst, align 8
  %helpers = sub i64 %n, 1
  %w1 = call i64 @llvm.smin.i64(i64 %asleep, i64 %helpers)
  %w2 = call i64 @llvm.smin.i64(i64 %w1, i64 3)
  %any = icmp sgt i64 %w2, 0
  br i1 %any, label %rouse, label %work
rouse:
  call void @wake(i64 %w2)
  br label %work
work:
  call void @run_tasks()
  %max = load atomic i64, ptr @spins monotonic, align 8
  br label %spin
spin:
  %s = phi i64 [ 0, %work ], [ %s1, %pause ]
  %d = load atomic i64, ptr @done acquire, align 8
  %finished = icmp eq i64 %d, %n
  br i1 %finished, label %release, label %patient
patient:
  %enough = icmp uge i64 %s, %max
  br i1 %enough, label %lie_down, label %pause
pause:
  call void @relax(i64 %s)
  %s1 = add i64 %s, 1
  br label %spin
lie_down:
  %l = call i32 @pthread_mutex_lock(ptr @mutex)
  store atomic i64 1, ptr @caller_sleeps seq_cst, align 8
  br label %sleep
sleep:
  %d2 = load atomic i64, ptr @done seq_cst, align 8
  %finished2 = icmp eq i64 %d2, %n
  br i1 %finished2, label %get_up, label %wait
wait:
  %w = call i32 @pthread_cond_wait(ptr @done_cond, ptr @mutex)
  br label %sleep
get_up:
  store atomic i64 0, ptr @caller_sleeps seq_cst, align 8
  %u = call i32 @pthread_mutex_unlock(ptr @mutex)
  br label %release
release:
  store atomic i64 0, ptr @busy release, align 8
  ret void
serial:
  %some = icmp sgt i64 %n, 0
  br i1 %some, label %loop, label %exit
loop:
  %i = phi i64 [ 0, %serial ], [ %next, %loop ]
  call void %fn(ptr %ctx, i64 %i)
  %next = add i64 %i, 1
  %again = icmp slt i64 %next, %n
  br i1 %again, label %loop, label %exit
exit:
  ret void
}

declare i64 @llvm.umax.i64(i64, i64)
declare i64 @llvm.smin.i64(i64, i64)
"""

# Per architecture: declarations, a pause, and reading and writing the floating-point control register.
_MACHINE = {
    "x86_64": (
        "declare void @llvm.x86.sse2.pause()\ndeclare void @llvm.x86.sse.stmxcsr(ptr)\n"
        "declare void @llvm.x86.sse.ldmxcsr(ptr)",
        "call void @llvm.x86.sse2.pause()",
        "  %slot = alloca i32, align 4\n  call void @llvm.x86.sse.stmxcsr(ptr %slot)\n"
        "  %word = load i32, ptr %slot, align 4\n  %state = zext i32 %word to i64\n  ret i64 %state",
        "  %slot = alloca i32, align 4\n  %word = trunc i64 %state to i32\n"
        "  store i32 %word, ptr %slot, align 4\n"
        "  call void @llvm.x86.sse.ldmxcsr(ptr %slot)\n  ret void",
    ),
    "aarch64": (
        "declare void @llvm.aarch64.isb(i32)\ndeclare i64 @llvm.aarch64.get.fpcr()\n"
        "declare void @llvm.aarch64.set.fpcr(i64)",
        "call void @llvm.aarch64.isb(i32 15)",
        "  %state = call i64 @llvm.aarch64.get.fpcr()\n  ret i64 %state",
        "  call void @llvm.aarch64.set.fpcr(i64 %state)\n  ret void",
    ),
}
_GENERIC = ("", "fence syncscope(\"singlethread\") seq_cst", "  ret i64 0", "  ret void")


def pool_ir(arch: str, *, threads: bool, darwin: bool) -> str:
    """The text of the pool: a serial one where there are no POSIX threads, else the one described above."""
    if not threads:
        return _SERIAL
    declarations, pause, get_fp, set_fp = _MACHINE.get(arch, _GENERIC)
    values = {
        "$MAX_THREADS": str(MAX_THREADS), "$DECLARATIONS": declarations, "$PAUSE": pause, "$GET_FP": get_fp,
        "$SET_FP": set_fp, "$SIG_BLOCK": "1" if darwin else "0", "$SIG_SETMASK": "3" if darwin else "2",
    }
    text = _THREADED.replace("$LIFECYCLE", LIFECYCLE)
    for name, value in values.items():
        text = text.replace(name, value)
    return text
