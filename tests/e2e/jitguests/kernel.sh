# The guest's kernel patches itself: static keys, tracepoints, ftrace, kprobes, modules. Each step is checked for what it
# should have changed; tests/e2e/test_long_jitguests.py looks for the lines `ok STEP` and at the kernel's log.
set -e
T=/sys/kernel/tracing
mount -t tracefs tracefs $T

now() { date +%s%N; }
fail() { echo "FAILED $*"; exit 1; }
work() {  # some processes, files and a pipe
  i=0
  while [ $i -lt 10 ]; do
    /bin/true
    echo "line $i" >/tmp/file
    cat /tmp/file | grep -q "$i" || fail "a pipe"
    i=$((i + 1))
  done
}
timed() {  # NAME COMMAND: how long work takes with it and without
  t0=$(now); work; t1=$(now)
  "$@" on; t2=$(now); work; t3=$(now); "$@" off
  t4=$(now); work; t5=$(now)
  echo "time kernel $*: before $(((t1 - t0) / 1000000)) ms, with $(((t3 - t2) / 1000000)) ms, after $(((t5 - t4) / 1000000)) ms"
}

schedstats() {
  case $1 in
    on) sysctl -q -w kernel.sched_schedstats=1; [ "$(sysctl -n kernel.sched_schedstats)" = 1 ] || fail "sched_schedstats" ;;
    off) sysctl -q -w kernel.sched_schedstats=0 ;;
  esac
}
tracepoint() {
  case $1 in
    on) : >$T/trace; echo 1 >$T/events/sched/sched_switch/enable ;;
    off) echo 0 >$T/events/sched/sched_switch/enable; grep -q 'sched_switch:' $T/trace || fail "no sched_switch in the trace"
         : >$T/trace; /bin/true; if grep -q 'sched_switch:' $T/trace; then fail "sched_switch after its end"; fi ;;
  esac
}
tracer() {  # TRACER WHAT on|off
  case $3 in
    on) : >$T/trace; echo "$1" >$T/current_tracer ;;
    off) echo 0 >$T/tracing_on; grep -q "$2" $T/trace || fail "no $2 in the trace of $1"
         echo nop >$T/current_tracer; echo 1 >$T/tracing_on; : >$T/trace ;;
  esac
}
probe() {
  case $1 in
    on) echo 'p:nacre_in do_sys_openat2' >$T/kprobe_events; echo 'r:nacre_out do_sys_openat2 $retval' >>$T/kprobe_events
        echo 'p:nacre_middle do_sys_openat2+8' 2>/dev/null >>$T/kprobe_events || true  # where an instruction begins there
        : >$T/trace; echo 1 >$T/events/kprobes/enable ;;
    off) echo 0 >$T/events/kprobes/enable
         for name in nacre_in nacre_out; do grep -q "$name:" $T/trace || fail "no $name in the trace"; done
         echo >$T/kprobe_events; : >$T/trace ;;
  esac
}

timed schedstats
for i in 1 2 3 4 5 6 7 8 9 10; do schedstats on; work; grep -q 'wait_sum' /proc/self/sched || fail "no wait_sum"; schedstats off; done
echo "ok static-keys"

timed tracepoint
for i in 1 2 3 4 5; do tracepoint on; work; tracepoint off; done
echo "ok tracepoints"

grep -qw function $T/available_tracers || fail "the kernel has no function tracer"
timed tracer function vfs_read
for i in 1 2 3; do tracer function vfs_write on; work; tracer function vfs_write off; done
echo 'vfs_*' >$T/set_ftrace_filter
for i in 1 2 3 4 5; do tracer function vfs_read on; work; tracer function vfs_read off; done
echo >$T/set_ftrace_filter
echo "ok ftrace"
if grep -qw function_graph $T/available_tracers; then
  timed tracer function_graph 'vfs_read'
  echo "ok ftrace-graph"
else
  echo "ok ftrace-graph (the kernel has none)"
fi

if [ -e $T/kprobe_events ]; then
  timed probe
  for i in 1 2 3; do probe on; work; probe off; done
  echo "ok kprobes"
else
  echo "ok kprobes (the kernel has none)"
fi

names=
for name in dummy loop tun veth raid6_pq xor crc32c_intel libcrc32c nbd; do
  modinfo "$name" >/dev/null 2>&1 && ! grep -q "^$name " /proc/modules && names="$names $name"
done
[ "$(echo $names | wc -w)" -ge 3 ] || fail "only these modules: $names"
modules() {  # in and out; `dry`: the same programs, nothing loaded
  for name in $names; do
    modprobe ${1:+-n} "$name" || fail "modprobe $name"
    [ "$1" ] || grep -q "^$name " /proc/modules || fail "$name is not there"
    modprobe ${1:+-n} -r "$name" || [ "$1" ] || fail "modprobe -r $name"
    if grep -q "^$name " /proc/modules; then fail "$name is still there"; fi
  done
}
t0=$(now); modules dry; t1=$(now)
for i in 1 2 3 4 5; do modules; done
t2=$(now); modules dry; t3=$(now)
echo "time kernel modules: before $(((t1 - t0) / 1000000)) ms, with $(((t2 - t1) / 5000000)) ms, after $(((t3 - t2) / 1000000)) ms"
echo "ok modules"

cpus=$(nproc)
if [ "$cpus" -gt 1 ]; then  # code for one CPU and for several
  for i in 1 2 3 4 5; do
    echo 0 >/sys/devices/system/cpu/cpu1/online
    work
    [ "$(nproc)" = $((cpus - 1)) ] || fail "CPU 1 is still there"
    echo 1 >/sys/devices/system/cpu/cpu1/online
    work
    [ "$(nproc)" = "$cpus" ] || fail "CPU 1 did not come back"
  done
  echo "ok cpu-hotplug"
fi
echo "ok kernel"
