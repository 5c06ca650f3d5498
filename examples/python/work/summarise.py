import statistics
import sys

with open(sys.argv[1]) as f:
    numbers = [float(line) for line in f]

with open("report.txt", "w") as f:
    f.write(f"mean {statistics.mean(numbers)}, median {statistics.median(numbers)}\n")
print(f"{len(numbers)} numbers summarised in report.txt")
