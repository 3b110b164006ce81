// Java's ordinary life: collections, strings, virtual calls, streams, exceptions, threads, allocation.
import java.util.*;
import java.util.concurrent.*;
import java.util.stream.*;

public class Work {
    interface Shape { double area(); }
    record Square(double side) implements Shape { public double area() { return side * side; } }
    record Circle(double radius) implements Shape { public double area() { return 3 * radius * radius; } }

    static long words() {
        Map<String, Integer> counts = new HashMap<>();
        StringBuilder text = new StringBuilder();
        for (int i = 0; i < 20000; i++) text.append("w").append(i * 7919 % 1009).append(' ');
        for (String word : text.toString().split(" ")) counts.merge(word, 1, Integer::sum);
        return counts.entrySet().stream().filter(e -> e.getKey().endsWith("7")).mapToLong(Map.Entry::getValue).sum();
    }

    static long shapes() {
        double sum = 0;
        long refused = 0;
        for (int i = 0; i < 400000; i++) {
            Shape shape = i % 3 == 0 ? new Circle(i % 11) : new Square(i % 13);
            try {
                if (i % 1000 == 0) throw new IllegalStateException("number " + i);
                sum += shape.area();
            } catch (IllegalStateException e) {
                refused += e.getMessage().length();
            }
        }
        return (long) sum + refused;
    }

    static long tree() {
        TreeMap<Long, byte[]> map = new TreeMap<>();
        long key = 1;
        for (int i = 0; i < 60000; i++) {
            key = key * 6364136223846793005L + 1442695040888963407L;
            map.put(key, new byte[32]);
            if (map.size() > 10000) map.pollFirstEntry();
        }
        return map.firstKey() ^ map.lastKey();
    }

    static long threads() throws Exception {
        ExecutorService pool = Executors.newFixedThreadPool(4);
        List<Future<Long>> parts = new ArrayList<>();
        for (int t = 0; t < 16; t++) {
            final int part = t;
            parts.add(pool.submit(() -> IntStream.range(part * 20000, (part + 1) * 20000).asLongStream()
                .map(x -> x * x % 1013).sum()));
        }
        long sum = 0;
        for (Future<Long> part : parts) sum += part.get();
        pool.shutdown();
        return sum;
    }

    public static void main(String[] arguments) throws Exception {
        System.out.println(words() + " " + shapes() + " " + tree() + " " + threads());
    }
}
