# Compiles Jit.java by the guest's own Java, itself a large Java program, and runs it with the flags given.
set -e
java -m jdk.compiler/com.sun.tools.javac.Main -d /tmp/classes Jit.java
exec java -cp /tmp/classes "$@" Jit
