"""Problems about lists."""

PROBLEMS = r"""
@ second-largest 1
Write a function `second_largest(numbers)` that returns the second largest distinct value of a list of integers, or
None when there are fewer than two distinct values.
? second_largest([]) == None
? second_largest([4, 4]) == None
? second_largest([1, 2]) == 1
? second_largest([5, 5, 3]) == 3
? second_largest([2, 9, 7, 9]) == 7
? second_largest([-1, -5, -3]) == -3
-
def second_largest(numbers):
    distinct = sorted(set(numbers))
    return distinct[-2] if len(distinct) > 1 else None
-
def second_largest(numbers):
    first = second = None
    for n in numbers:
        if first is None or n > first:
            first, second = n, first
        elif n < first and (second is None or n > second):
            second = n
    return second
-
def second_largest(numbers):
    if not numbers:
        return None
    top = max(numbers)
    return max((n for n in numbers if n != top), default=None)

@ running-sum 1
Write a function `running_sum(numbers)` that returns a list whose i-th item is the sum of the first i + 1 numbers.
? running_sum([]) == []
? running_sum([3]) == [3]
? running_sum([1, 2, 3]) == [1, 3, 6]
? running_sum([5, -5, 2]) == [5, 0, 2]
-
def running_sum(numbers):
    result = []
    total = 0
    for n in numbers:
        total += n
        result.append(total)
    return result
-
from itertools import accumulate

def running_sum(numbers):
    return list(accumulate(numbers))
-
def running_sum(numbers):
    return [sum(numbers[:i + 1]) for i in range(len(numbers))]

@ rotate-left 1
Write a function `rotate_left(items, k)` that returns a new list in which the items are moved `k` places to the left,
those that fall off coming back at the end; `k` is not negative and may be larger than the list.
? rotate_left([], 3) == []
? rotate_left([1, 2, 3], 1) == [2, 3, 1]
? rotate_left([1, 2, 3], 0) == [1, 2, 3]
? rotate_left([1, 2, 3, 4], 6) == [3, 4, 1, 2]
? rotate_left([7], 5) == [7]
-
def rotate_left(items, k):
    if not items:
        return []
    k %= len(items)
    return items[k:] + items[:k]
-
def rotate_left(items, k):
    result = list(items)
    for _ in range(k):
        if result:
            result.append(result.pop(0))
    return result
-
def rotate_left(items, k):
    size = len(items)
    return [items[(i + k) % size] for i in range(size)]

@ chunk-list 1
Write a function `chunks(items, size)` that cuts a list into consecutive lists of `size` items; the last one may be
shorter.
? chunks([], 2) == []
? chunks([1, 2, 3, 4], 2) == [[1, 2], [3, 4]]
? chunks([1, 2, 3], 2) == [[1, 2], [3]]
? chunks([1, 2], 5) == [[1, 2]]
? chunks([1, 2, 3], 1) == [[1], [2], [3]]
-
def chunks(items, size):
    return [items[i:i + size] for i in range(0, len(items), size)]
-
def chunks(items, size):
    result = []
    for item in items:
        if not result or len(result[-1]) == size:
            result.append([])
        result[-1].append(item)
    return result
-
def chunks(items, size):
    if len(items) == 0:
        return []
    return [items[:size]] + chunks(items[size:], size)

@ flatten-once 1
Write a function `flatten(lists)` that joins a list of lists into one list.
? flatten([]) == []
? flatten([[1], [2, 3]]) == [1, 2, 3]
? flatten([[], [4], []]) == [4]
? flatten([[1, [2]], [3]]) == [1, [2], 3]
-
def flatten(lists):
    result = []
    for part in lists:
        result.extend(part)
    return result
-
def flatten(lists):
    return [item for part in lists for item in part]
-
def flatten(lists):
    return sum(lists, [])

@ dedupe-neighbours 1
Write a function `squeeze(items)` that returns the list without items equal to the item directly before them.
? squeeze([]) == []
? squeeze([1, 1, 2]) == [1, 2]
? squeeze([1, 2, 1]) == [1, 2, 1]
? squeeze([3, 3, 3]) == [3]
? squeeze([0, 0, 1, 1, 0]) == [0, 1, 0]
-
def squeeze(items):
    result = []
    for item in items:
        if not result or result[-1] != item:
            result.append(item)
    return result
-
from itertools import groupby

def squeeze(items):
    return [key for key, _ in groupby(items)]
-
def squeeze(items):
    return items[:1] + [b for a, b in zip(items, items[1:]) if a != b]

@ sorted-check 1
Write a function `order(numbers)` that returns "up" if every number is larger than the one before it, "down" if every
number is smaller than the one before it and "none" otherwise; lists with fewer than two numbers give "none".
? order([]) == "none"
? order([1]) == "none"
? order([1, 2, 5]) == "up"
? order([5, 2, 1]) == "down"
? order([1, 1, 2]) == "none"
? order([3, 1, 2]) == "none"
? order([2, 2]) == "none"
? order([3, 2, 2]) == "none"
-
def order(numbers):
    if len(numbers) < 2:
        return "none"
    pairs = list(zip(numbers, numbers[1:]))
    if all(a < b for a, b in pairs):
        return "up"
    if all(a > b for a, b in pairs):
        return "down"
    return "none"
-
def order(numbers):
    distinct = sorted(set(numbers))
    if len(numbers) > 1 and numbers == distinct:
        return "up"
    if len(numbers) > 1 and numbers == distinct[::-1]:
        return "down"
    return "none"
-
def order(numbers):
    rises = falls = 0
    for i in range(1, len(numbers)):
        rises += numbers[i] > numbers[i - 1]
        falls += numbers[i] < numbers[i - 1]
    steps = len(numbers) - 1
    if steps > 0 and rises == steps:
        return "up"
    return "down" if steps > 0 and falls == steps else "none"

@ merge-sorted 2
Write a function `merge(a, b)` that merges two sorted lists of numbers into one sorted list.
? merge([], []) == []
? merge([1, 3], [2, 4]) == [1, 2, 3, 4]
? merge([], [5]) == [5]
? merge([1, 1], [1]) == [1, 1, 1]
? merge([7, 8, 9], [1]) == [1, 7, 8, 9]
? merge([2], [3, 6]) == [2, 3, 6]
-
def merge(a, b):
    result = []
    i = j = 0
    while i < len(a) and j < len(b):
        if a[i] <= b[j]:
            result.append(a[i])
            i += 1
        else:
            result.append(b[j])
            j += 1
    return result + a[i:] + b[j:]
-
def merge(a, b):
    return sorted(a + b)
-
def merge(a, b):
    if not a or not b:
        return a + b
    if a[0] < b[0]:
        return [a[0]] + merge(a[1:], b)
    return [b[0]] + merge(a, b[1:])

@ moving-average 2
Write a function `moving_average(numbers, size)` that returns the averages, rounded down to integers, of all runs of
`size` neighbouring numbers.
? moving_average([1, 2, 3, 4], 2) == [1, 2, 3]
? moving_average([5, 7], 3) == []
? moving_average([4, 8, 6], 3) == [6]
? moving_average([9, 1], 1) == [9, 1]
? moving_average([], 2) == []
? moving_average([10, 0, 5, 9], 3) == [5, 4]
-
def moving_average(numbers, size):
    count = len(numbers) - size + 1
    return [sum(numbers[i:i + size]) // size for i in range(count)]
-
def moving_average(numbers, size):
    result = []
    total = 0
    for i, n in enumerate(numbers):
        total += n
        if i >= size:
            total -= numbers[i - size]
        if i >= size - 1:
            result.append(total // size)
    return result
-
def moving_average(numbers, size):
    sums = [0]
    for n in numbers:
        sums.append(sums[-1] + n)
    return [(high - low) // size for low, high in zip(sums, sums[size:])]

@ max-subarray 2
Write a function `best_sum(numbers)` that returns the largest sum of a non-empty run of neighbouring numbers; the list
is not empty.
? best_sum([3]) == 3
? best_sum([-2, -1, -3]) == -1
? best_sum([1, -2, 3, 4, -1]) == 7
? best_sum([5, -2, 4]) == 7
? best_sum([2, -5, 3]) == 3
? best_sum([0, -1]) == 0
-
def best_sum(numbers):
    best = current = numbers[0]
    for n in numbers[1:]:
        current = max(n, current + n)
        best = max(best, current)
    return best
-
def best_sum(numbers):
    size = len(numbers)
    return max(sum(numbers[i:j]) for i in range(size) for j in range(i + 1, size + 1))
-
def best_sum(numbers):
    total = 0
    lowest = 0
    best = numbers[0]
    for n in numbers:
        total += n
        best = max(best, total - lowest)
        lowest = min(lowest, total)
    return best

@ pair-with-sum 2
Write a function `pair_with_sum(numbers, target)` that returns the indexes [i, j] with i < j of two numbers that add
up to `target`, or an empty list; among several pairs it takes the smallest i, then the smallest j.
? pair_with_sum([2, 7, 11], 9) == [0, 1]
? pair_with_sum([1, 2, 3], 7) == []
? pair_with_sum([3, 3, 3], 6) == [0, 1]
? pair_with_sum([5], 10) == []
? pair_with_sum([1, 4, 2, 3], 5) == [0, 1]
? pair_with_sum([9, 1, 4, 4], 8) == [2, 3]
? pair_with_sum([4, 1, 2], 8) == []
-
def pair_with_sum(numbers, target):
    for i in range(len(numbers)):
        for j in range(i + 1, len(numbers)):
            if numbers[i] + numbers[j] == target:
                return [i, j]
    return []
-
from itertools import combinations

def pair_with_sum(numbers, target):
    for (i, a), (j, b) in combinations(enumerate(numbers), 2):
        if a + b == target:
            return [i, j]
    return []
-
def pair_with_sum(numbers, target):
    for i, n in enumerate(numbers):
        rest = numbers[i + 1:]
        if target - n in rest:
            return [i, i + 1 + rest.index(target - n)]
    return []

@ zeros-to-end 1
Write a function `zeros_last(numbers)` that returns the numbers with all zeros moved to the end and the others in
their old order.
? zeros_last([]) == []
? zeros_last([0, 1, 0, 3]) == [1, 3, 0, 0]
? zeros_last([0, 0]) == [0, 0]
? zeros_last([2, -1]) == [2, -1]
? zeros_last([0, 5]) == [5, 0]
-
def zeros_last(numbers):
    kept = [n for n in numbers if n != 0]
    return kept + [0] * (len(numbers) - len(kept))
-
def zeros_last(numbers):
    return sorted(numbers, key=lambda n: n == 0)
-
def zeros_last(numbers):
    result = list(numbers)
    place = 0
    for i in range(len(result)):
        if result[i] != 0:
            result[place], result[i] = result[i], result[place]
            place += 1
    return result

@ count-inversions 3
Write a function `inversions(numbers)` that counts the pairs of positions i < j at which the earlier number is larger
than the later one.
? inversions([]) == 0
? inversions([1, 2, 3]) == 0
? inversions([3, 2, 1]) == 3
? inversions([2, 1, 2]) == 1
? inversions([1, 1]) == 0
? inversions([4, 1, 3, 2]) == 4
-
def inversions(numbers):
    count = 0
    for i in range(len(numbers)):
        for j in range(i):
            if numbers[j] > numbers[i]:
                count += 1
    return count
-
from bisect import bisect_right, insort

def inversions(numbers):
    seen = []
    count = 0
    for n in numbers:
        count += len(seen) - bisect_right(seen, n)
        insort(seen, n)
    return count
-
def inversions(numbers):
    rest = list(numbers)
    swaps = 0
    for end in range(len(rest), 1, -1):
        for i in range(end - 1):
            if rest[i] > rest[i + 1]:
                rest[i], rest[i + 1] = rest[i + 1], rest[i]
                swaps += 1
    return swaps

@ local-peaks 2
Write a function `peaks(numbers)` that returns the indexes of all numbers that are larger than each neighbour they
have.
? peaks([]) == []
? peaks([4]) == [0]
? peaks([1, 3, 2]) == [1]
? peaks([5, 1, 5]) == [0, 2]
? peaks([2, 2, 2]) == []
? peaks([1, 2, 3]) == [2]
? peaks([3, 4, 4]) == []
-
def peaks(numbers):
    result = []
    for i, n in enumerate(numbers):
        if i > 0 and numbers[i - 1] >= n:
            continue
        if i + 1 < len(numbers) and numbers[i + 1] >= n:
            continue
        result.append(i)
    return result
-
def peaks(numbers):
    low = float("-inf")
    padded = [low] + numbers + [low]
    return [i - 1 for i in range(1, len(padded) - 1) if padded[i - 1] < padded[i] > padded[i + 1]]
-
def peaks(numbers):
    found = []
    for i in range(len(numbers)):
        neighbours = numbers[max(0, i - 1):i] + numbers[i + 1:i + 2]
        if all(n < numbers[i] for n in neighbours):
            found.append(i)
    return found

@ longest-increasing 3
Write a function `longest_increasing(numbers)` that returns the length of the longest strictly increasing subsequence
(the chosen numbers keep their order but need not be neighbours).
? longest_increasing([]) == 0
? longest_increasing([7]) == 1
? longest_increasing([3, 2, 1]) == 1
? longest_increasing([1, 5, 2, 3]) == 3
? longest_increasing([2, 2, 2]) == 1
? longest_increasing([4, 1, 6, 2, 8, 3, 9]) == 4
-
def longest_increasing(numbers):
    lengths = []
    for i, n in enumerate(numbers):
        before = [lengths[j] for j in range(i) if numbers[j] < n]
        lengths.append(1 + max(before, default=0))
    return max(lengths, default=0)
-
from bisect import bisect_left

def longest_increasing(numbers):
    tails = []
    for n in numbers:
        place = bisect_left(tails, n)
        tails[place:place + 1] = [n]
    return len(tails)
-
def longest_increasing(numbers, floor=None):
    if not numbers:
        return 0
    best = longest_increasing(numbers[1:], floor)
    if floor is None or numbers[0] > floor:
        best = max(best, 1 + longest_increasing(numbers[1:], numbers[0]))
    return best

@ majority-item 2
Write a function `majority(items)` that returns the item that fills more than half of the list, or None if there is
none.
? majority([]) == None
? majority([1, 1, 2]) == 1
? majority([1, 2]) == None
? majority(["a"]) == "a"
? majority([3, 1, 3, 2, 3]) == 3
? majority([1, 1, 2, 2]) == None
? majority([1, 2, 3]) == None
-
def majority(items):
    for item in items:
        if items.count(item) * 2 > len(items):
            return item
    return None
-
def majority(items):
    candidate, lead = None, 0
    for item in items:
        if lead == 0:
            candidate = item
        lead += 1 if item == candidate else -1
    return candidate if items.count(candidate) > len(items) // 2 else None
-
from collections import Counter

def majority(items):
    for item, count in Counter(items).most_common(1):
        if count > len(items) - count:
            return item
    return None

@ binary-search 2
Write a function `find_sorted(numbers, target)` that returns the index of `target` in a sorted list of distinct
numbers, or -1 if it is not there.
? find_sorted([], 1) == -1
? find_sorted([1, 3, 5], 1) == 0
? find_sorted([1, 3, 5], 5) == 2
? find_sorted([1, 3, 5], 4) == -1
? find_sorted([1, 3, 5], 9) == -1
? find_sorted([2, 4, 6, 8], 6) == 2
? find_sorted([2], 0) == -1
-
def find_sorted(numbers, target):
    low, high = 0, len(numbers) - 1
    while low <= high:
        mid = (low + high) // 2
        if numbers[mid] == target:
            return mid
        if numbers[mid] < target:
            low = mid + 1
        else:
            high = mid - 1
    return -1
-
from bisect import bisect_left

def find_sorted(numbers, target):
    i = bisect_left(numbers, target)
    if i < len(numbers) and numbers[i] == target:
        return i
    return -1
-
def find_sorted(numbers, target):
    for i, n in enumerate(numbers):
        if n >= target:
            return i if n == target else -1
    return -1

@ product-except-self 2
Write a function `other_products(numbers)` that returns for every position the product of all the other numbers.
? other_products([1, 2, 3]) == [6, 3, 2]
? other_products([5]) == [1]
? other_products([]) == []
? other_products([0, 4, 2]) == [8, 0, 0]
? other_products([-1, 3]) == [3, -1]
? other_products([2, 3, 4, 5]) == [60, 40, 30, 24]
-
def other_products(numbers):
    result = []
    for i in range(len(numbers)):
        product = 1
        for j, n in enumerate(numbers):
            if i != j:
                product *= n
        result.append(product)
    return result
-
def other_products(numbers):
    result = [1] * len(numbers)
    left = right = 1
    for i in range(len(numbers)):
        result[i] *= left
        left *= numbers[i]
        result[-1 - i] *= right
        right *= numbers[-1 - i]
    return result
-
from math import prod

def other_products(numbers):
    return [prod(numbers[:i] + numbers[i + 1:]) for i in range(len(numbers))]

@ missing-number 1
Write a function `missing(numbers)` that gets all integers from 0 to n but one, in any order, and returns the one that
is missing.
? missing([0, 1, 3]) == 2
? missing([1]) == 0
? missing([]) == 0
? missing([0]) == 1
? missing([2, 0, 1]) == 3
? missing([4, 2, 1, 0]) == 3
-
def missing(numbers):
    n = len(numbers)
    return n * (n + 1) // 2 - sum(numbers)
-
def missing(numbers):
    for k in range(len(numbers) + 1):
        if k not in numbers:
            return k
-
def missing(numbers):
    result = len(numbers)
    for i, n in enumerate(numbers):
        result ^= i ^ n
    return result

@ window-maximum 2
Write a function `window_max(numbers, size)` that returns the maximum of each run of `size` neighbouring numbers.
? window_max([1, 3, 2], 2) == [3, 3]
? window_max([4, 2, 1], 1) == [4, 2, 1]
? window_max([1, 2], 3) == []
? window_max([5, 1, 2, 7, 0], 3) == [5, 7, 7]
? window_max([6, 5, 4], 3) == [6]
-
def window_max(numbers, size):
    return [max(numbers[i:i + size]) for i in range(len(numbers) - size + 1)]
-
def window_max(numbers, size):
    queue = []
    result = []
    for i, n in enumerate(numbers):
        while queue and numbers[queue[-1]] <= n:
            queue.pop()
        queue.append(i)
        if queue[0] <= i - size:
            queue.pop(0)
        if i + 1 >= size:
            result.append(numbers[queue[0]])
    return result
-
def window_max(numbers, size):
    result = []
    window = []
    for n in numbers:
        window.append(n)
        if len(window) == size:
            result.append(sorted(window)[-1])
            window = window[1:]
    return result

@ trade-profit 2
Write a function `best_profit(prices)` that returns the largest gain from buying on one day and selling on a later
day, or 0 if no trade gains anything.
? best_profit([]) == 0
? best_profit([5]) == 0
? best_profit([3, 2, 1]) == 0
? best_profit([2, 5, 1, 3]) == 3
? best_profit([7, 1, 5, 3, 6]) == 5
? best_profit([1, 9]) == 8
-
def best_profit(prices):
    best = 0
    lowest = None
    for price in prices:
        if lowest is None or price < lowest:
            lowest = price
        best = max(best, price - lowest)
    return best
-
def best_profit(prices):
    gains = [prices[j] - prices[i] for j in range(len(prices)) for i in range(j)]
    return max(gains + [0])
-
def best_profit(prices):
    best = 0
    current = 0
    for a, b in zip(prices, prices[1:]):
        current = max(0, current + b - a)
        if current > best:
            best = current
    return best

@ trapped-water 3
Write a function `trapped(heights)` that returns how many units of water stay between walls of the given heights (each
one unit wide) after rain.
? trapped([]) == 0
? trapped([3, 0, 3]) == 3
? trapped([1, 2, 3]) == 0
? trapped([4, 1, 2, 1, 3]) == 5
? trapped([2, 0, 1]) == 1
? trapped([0, 1, 0, 2, 1, 0, 1, 3]) == 5
-
def trapped(heights):
    total = 0
    for i, height in enumerate(heights):
        level = min(max(heights[:i + 1]), max(heights[i:]))
        total += level - height
    return total
-
def trapped(heights):
    left, right = 0, len(heights) - 1
    level = total = 0
    while left <= right:
        low = min(heights[left], heights[right])
        level = max(level, low)
        total += level - low
        if heights[left] <= heights[right]:
            left += 1
        else:
            right -= 1
    return total
-
def trapped(heights):
    total = 0
    for level in range(max(heights, default=0)):
        walls = [i for i, height in enumerate(heights) if height > level]
        total += walls[-1] - walls[0] + 1 - len(walls)
    return total

@ every-nth-removed 1
Write a function `drop_every(items, n)` that returns the list without every n-th item (the items at positions n, 2n,
3n, ... counted from one).
? drop_every([], 2) == []
? drop_every([1, 2, 3, 4, 5], 2) == [1, 3, 5]
? drop_every([1, 2, 3], 1) == []
? drop_every([1, 2, 3], 3) == [1, 2]
? drop_every([1, 2], 4) == [1, 2]
? drop_every([1, 2, 3, 4, 5, 6, 7], 3) == [1, 2, 4, 5, 7]
-
def drop_every(items, n):
    return [item for i, item in enumerate(items, 1) if i % n != 0]
-
def drop_every(items, n):
    result = list(items)
    del result[n - 1::n]
    return result
-
def drop_every(items, n):
    if len(items) < n:
        return items
    return items[:n - 1] + drop_every(items[n:], n)

@ balance-point 2
Write a function `balance(numbers)` that returns the first index at which the sum of all earlier numbers equals the
sum of all later ones, or -1.
? balance([]) == -1
? balance([5]) == 0
? balance([1, 2, 1]) == 1
? balance([1, 2]) == -1
? balance([2, 3, -3]) == 0
? balance([4, 1, 9, 2, 3]) == 2
? balance([1, -1, 7]) == 2
-
def balance(numbers):
    for i in range(len(numbers)):
        if sum(numbers[:i]) == sum(numbers[i + 1:]):
            return i
    return -1
-
def balance(numbers):
    total = sum(numbers)
    left = 0
    for i, n in enumerate(numbers):
        if left * 2 + n == total:
            return i
        left += n
    return -1
-
def balance(numbers):
    left, right = 0, sum(numbers)
    for i, n in enumerate(numbers):
        right -= n
        if left == right:
            return i
        left += n
    return -1
"""
