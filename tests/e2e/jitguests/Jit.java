// What makes a JVM write, patch and throw away machine code: run by tests/e2e/test_long_jitguests.py, which knows the output.
import java.lang.invoke.*;
import java.lang.reflect.*;
import java.nio.file.*;
import java.util.*;
import java.util.concurrent.*;
import java.util.concurrent.atomic.*;
import java.util.function.*;

public class Jit {
    static final int ROUNDS = 6;

    // A class that is defined again and again under hidden names: new code for each.
    public static class Template implements LongUnaryOperator {
        public long applyAsLong(long x) {
            for (int i = 0; i < 50; i++) x = x * 6364136223846793005L + i;
            return x;
        }
    }

    static long classes(int count) throws Exception {
        byte[] bytes = Jit.class.getResourceAsStream("Jit$Template.class").readAllBytes();
        long value = 1;
        for (int i = 0; i < count; i++) {
            Class<?> made = MethodHandles.lookup().defineHiddenClass(bytes, true).lookupClass();
            LongUnaryOperator operator = (LongUnaryOperator) made.getDeclaredConstructor().newInstance();
            for (int k = 0; k < 40; k++) value = operator.applyAsLong(value);
        }
        return value;
    }

    static long proxies(int count) {
        long sum = 0;
        for (int i = 0; i < count; i++) {
            final int number = i;
            IntBinaryOperator operator = (IntBinaryOperator) Proxy.newProxyInstance(new ClassLoader(Jit.class.getClassLoader()) {},
                new Class<?>[] {IntBinaryOperator.class}, (self, method, a) -> (Integer) a[0] * number + (Integer) a[1]);
            sum += operator.applyAsInt(i, 3);
        }
        return sum;
    }

    // Implicit checks: compiled code finds these by SIGSEGV and SIGFPE, stack overflow by guard pages.
    static int divide(int a, int b) { return a / b; }
    static int length(String text) { return text.length(); }
    static int deeper(int n) { return n == Integer.MAX_VALUE ? 0 : deeper(n + 1) + 1; }

    static long exceptions(int count) {
        long caught = 0;
        int[] array = new int[10];
        for (int i = 0; i < count; i++) {
            try { caught += divide(100, i % 10 == 0 ? 0 : i % 10); } catch (ArithmeticException e) { caught += 1000; }
            try { caught += length(i % 7 == 0 ? null : "seven"); } catch (NullPointerException e) { caught += 2000; }
            try { array[i % 11]++; } catch (ArrayIndexOutOfBoundsException e) { caught += 3000; }
            try { Object o = i % 13 == 0 ? "text" : (Object) i; caught += (Integer) o & 1; } catch (ClassCastException e) { caught += 4000; }
        }
        for (int i = 0; i < 3; i++) {
            try { caught += deeper(0) > 0 ? 0 : 1; } catch (StackOverflowError e) { caught += 5000; }
        }
        return caught;
    }

    // Speculation that fails: one implementation, then a second and a third are loaded and the compiled callers thrown away.
    interface Step { long next(long x); }
    static class A implements Step { public long next(long x) { return x + 1; } }
    static class B implements Step { public long next(long x) { return x * 3; } }
    static class C implements Step { public long next(long x) { return x ^ 0x5555; } }

    static long run(Step step, int count) {
        long x = 1;
        for (int i = 0; i < count; i++) x = step.next(x);
        return x;
    }

    static long deoptimize() {
        long sum = 0;
        for (int i = 0; i < 50; i++) sum += run(new A(), 10000);
        for (int i = 0; i < 50; i++) sum = sum * 31 + run(i % 2 == 0 ? new A() : new B(), 10000);
        for (int i = 0; i < 50; i++) sum = sum * 31 + run(i % 3 == 0 ? new A() : i % 3 == 1 ? new B() : new C(), 10000);
        return sum;
    }

    static long allocate(int count) {
        Object[] live = new Object[5000];
        long random = 7, sum = 0;
        for (int i = 0; i < count; i++) {
            random = random * 6364136223846793005L + 1442695040888963407L;
            int at = (int) (random >>> 40) % live.length;
            if (live[at] instanceof byte[] old) sum += old.length + old[old.length - 1];
            byte[] fresh = new byte[(int) (random >>> 55) + 1];
            fresh[fresh.length - 1] = (byte) i;
            live[at] = fresh;
        }
        return sum;
    }

    static long threads() throws Exception {
        AtomicLong atomic = new AtomicLong();
        long[] guarded = new long[1];
        ConcurrentHashMap<Integer, Integer> map = new ConcurrentHashMap<>();
        BlockingQueue<Integer> queue = new ArrayBlockingQueue<>(16);
        List<Thread> all = new ArrayList<>();
        for (int t = 0; t < 6; t++) {
            final int number = t;
            Thread thread = new Thread(() -> {
                try {
                    for (int i = 0; i < 4000; i++) {
                        atomic.addAndGet(i);
                        synchronized (guarded) { guarded[0] += number; }
                        map.merge(i % 100, 1, Integer::sum);
                        if (number < 3) queue.put(i);
                        else atomic.addAndGet(-queue.take());
                    }
                } catch (InterruptedException e) { throw new RuntimeException(e); }
            });
            thread.start();
            all.add(thread);
        }
        for (Thread thread : all) thread.join();
        return atomic.get() * 31 + guarded[0] + map.values().stream().mapToInt(Integer::intValue).sum();
    }

    public static void main(String[] arguments) throws Exception {
        for (int round = 0; round < ROUNDS; round++) {
            long start = System.nanoTime();
            String line = classes(120) + " " + proxies(60) + " " + exceptions(60000) + " " + deoptimize() + " "
                + allocate(400000) + " " + threads();
            System.out.println("java " + line);
            System.out.println("time java round " + round + " " + (System.nanoTime() - start) / 1000000 + " ms");
        }
    }
}
