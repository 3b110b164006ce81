# A shell script as configure scripts and boot scripts are: most of its time goes into starting small programs.
n=0
total=0
while [ $n -lt 60 ]; do
  n=$((n + 1))
  word=$(echo "value-$n" | sed 's/value/number/')
  total=$((total + $(expr $n % 7)))
  case "$word" in
    *0) /bin/true ;;
    *) [ "$(basename "/a/b/$word" -5)" ] ;;
  esac
done
echo "$word $total"
