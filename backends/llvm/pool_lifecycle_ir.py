"""The part of the thread pool's LLVM IR text that starts, stops, resizes and, after a fork, forgets workers.
Part of pool_ir.py's text, which declares everything it names.
"""

LIFECYCLE = """
; Starts the workers that are missing. With signals blocked: those are for the program's own threads.
define internal void @start() {
entry:
  %mask = alloca [128 x i8], align 16
  %saved = alloca [128 x i8], align 16
  %attr = alloca [128 x i8], align 16
  call void @llvm.memset.p0.i64(ptr %mask, i8 -1, i64 128, i1 false)
  %m1 = call i32 @pthread_sigmask(i32 $SIG_BLOCK, ptr %mask, ptr %saved)
  %a1 = call i32 @pthread_attr_init(ptr %attr)
  %a2 = call i32 @pthread_attr_setstacksize(ptr %attr, i64 8388608)
  %limit = load atomic i64, ptr @limit monotonic, align 8
  %wanted = sub i64 %limit, 1
  %first = load atomic i64, ptr @started monotonic, align 8
  br label %loop
loop:
  %i = phi i64 [ %first, %entry ], [ %next, %created ]
  %more = icmp slt i64 %i, %wanted
  br i1 %more, label %create, label %exit
create:
  %slot = getelementptr [$MAX_THREADS x i64], ptr @threads, i64 0, i64 %i
  %rc = call i32 @pthread_create(ptr %slot, ptr %attr, ptr @worker, ptr null)
  %ok = icmp eq i32 %rc, 0
  br i1 %ok, label %created, label %failed
created:
  %next = add i64 %i, 1
  store atomic i64 %next, ptr @started monotonic, align 8
  br label %loop
failed:
  %have = add i64 %i, 1
  store atomic i64 %have, ptr @limit monotonic, align 8
  br label %exit
exit:
  %a3 = call i32 @pthread_attr_destroy(ptr %attr)
  %m2 = call i32 @pthread_sigmask(i32 $SIG_SETMASK, ptr %saved, ptr null)
  ret void
}

define internal void @reset() {
  %m = call i32 @pthread_mutex_init(ptr @mutex, ptr null)
  %c1 = call i32 @pthread_cond_init(ptr @work_cond, ptr null)
  %c2 = call i32 @pthread_cond_init(ptr @done_cond, ptr null)
  store atomic i64 0, ptr @remaining monotonic, align 8
  store atomic i64 0, ptr @done monotonic, align 8
  store atomic i64 0, ptr @sleepers monotonic, align 8
  store atomic i64 0, ptr @caller_sleeps monotonic, align 8
  store atomic i64 0, ptr @stop monotonic, align 8
  store atomic i64 0, ptr @started monotonic, align 8
  store atomic i64 0, ptr @busy seq_cst, align 8
  ret void
}

; Resets what a fork left behind. False while another thread is doing that.
define internal i1 @mine() {
entry:
  %p = call i32 @getpid()
  %now = zext i32 %p to i64
  %was = load atomic i64, ptr @pid acquire, align 8
  %same = icmp eq i64 %now, %was
  br i1 %same, label %yes, label %forked
forked:
  %busy = icmp eq i64 %was, 0
  br i1 %busy, label %no, label %take
take:
  %pair = cmpxchg ptr @pid, i64 %was, i64 0 seq_cst monotonic, align 8
  %won = extractvalue { i64, i1 } %pair, 1
  br i1 %won, label %clean, label %no
clean:
  call void @reset()
  store atomic i64 %now, ptr @pid release, align 8
  br label %yes
yes:
  ret i1 true
no:
  ret i1 false
}

define void @tg_pool_init(i64 %threads, i64 %spins) {
  call void @reset()
  store atomic i64 %threads, ptr @limit monotonic, align 8
  store atomic i64 %spins, ptr @spins monotonic, align 8
  %p = call i32 @getpid()
  %now = zext i32 %p to i64
  store atomic i64 %now, ptr @pid release, align 8
  ret void
}

define i64 @tg_pool_workers() {
  %mine = call i1 @mine()
  %n = load atomic i64, ptr @started monotonic, align 8
  ret i64 %n
}

; Ends all workers and sets how many threads later jobs use. Waits for a running job, for %patience times 100
; us.
define i64 @tg_pool_resize(i64 %threads, i64 %spins, i64 %patience) {
entry:
  br label %try
try:
  %i = phi i64 [ 0, %entry ], [ %next, %later ]
  %mine = call i1 @mine()
  br i1 %mine, label %grab, label %busy
grab:
  %pair = cmpxchg ptr @busy, i64 0, i64 1 seq_cst monotonic, align 8
  %won = extractvalue { i64, i1 } %pair, 1
  br i1 %won, label %owner, label %busy
busy:
  %next = add i64 %i, 1
  %over = icmp sgt i64 %next, %patience
  br i1 %over, label %give_up, label %later
later:
  %z = call i32 @usleep(i32 100)
  br label %try
give_up:
  ret i64 0
owner:
  store atomic i64 1, ptr @stop seq_cst, align 8
  %l = call i32 @pthread_mutex_lock(ptr @mutex)
  %u = call i32 @pthread_mutex_unlock(ptr @mutex)
  %b = call i32 @pthread_cond_broadcast(ptr @work_cond)
  %n = load atomic i64, ptr @started monotonic, align 8
  br label %join
join:
  %j = phi i64 [ 0, %owner ], [ %j1, %one ]
  %more = icmp slt i64 %j, %n
  br i1 %more, label %one, label %joined
one:
  %slot = getelementptr [$MAX_THREADS x i64], ptr @threads, i64 0, i64 %j
  %thread = load i64, ptr %slot, align 8
  %rc = call i32 @pthread_join(i64 %thread, ptr null)
  %j1 = add i64 %j, 1
  br label %join
joined:
  store atomic i64 0, ptr @started monotonic, align 8
  store atomic i64 0, ptr @stop seq_cst, align 8
  store atomic i64 %threads, ptr @limit monotonic, align 8
  store atomic i64 %spins, ptr @spins monotonic, align 8
  store atomic i64 0, ptr @busy seq_cst, align 8
  ret i64 1
}
"""
