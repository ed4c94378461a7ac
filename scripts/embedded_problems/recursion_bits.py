"""Problems about recursion, combinations and bits."""

PROBLEMS = r"""
@ count-ones 1
Write a function `count_ones(n)` that returns how many binary digits of the non-negative integer `n` are 1.
? count_ones(0) == 0
? count_ones(1) == 1
? count_ones(8) == 1
? count_ones(255) == 8
? count_ones(22) == 3
-
def count_ones(n):
    return bin(n).count("1")
-
def count_ones(n):
    count = 0
    while n:
        n &= n - 1
        count += 1
    return count
-
def count_ones(n):
    if n == 0:
        return 0
    return n % 2 + count_ones(n // 2)

@ power-of-two 1
Write a function `is_power_of_two(n)` that tells whether the integer `n` is 1, 2, 4, 8, ...
? is_power_of_two(0) == False
? is_power_of_two(1) == True
? is_power_of_two(2) == True
? is_power_of_two(6) == False
? is_power_of_two(64) == True
? is_power_of_two(-4) == False
? is_power_of_two(3) == False
-
def is_power_of_two(n):
    return n > 0 and n & (n - 1) == 0
-
def is_power_of_two(n):
    power = 1
    while power < n:
        power *= 2
    return power == n
-
def is_power_of_two(n):
    if n < 2:
        return n == 1
    return n % 2 == 0 and is_power_of_two(n // 2)

@ reverse-bits 2
Write a function `reverse_byte(n)` that returns the integer whose eight binary digits are those of `n` (0 to 255) in
reverse order.
? reverse_byte(0) == 0
? reverse_byte(1) == 128
? reverse_byte(255) == 255
? reverse_byte(6) == 96
? reverse_byte(128) == 1
? reverse_byte(19) == 200
-
def reverse_byte(n):
    result = 0
    for _ in range(8):
        result = result << 1 | n & 1
        n >>= 1
    return result
-
def reverse_byte(n):
    digits = bin(n)[2:].zfill(8)
    return int(digits[::-1], 2)
-
def reverse_byte(n):
    return sum(128 >> i for i in range(8) if n >> i & 1)

@ single-number 1
Write a function `lonely(numbers)` that gets a list in which every number occurs exactly twice except one that occurs
once, and returns that one.
? lonely([5]) == 5
? lonely([1, 2, 1]) == 2
? lonely([4, 4, 0]) == 0
? lonely([7, 3, 9, 3, 7]) == 9
? lonely([-1, 2, -1]) == 2
-
def lonely(numbers):
    result = 0
    for n in numbers:
        result ^= n
    return result
-
def lonely(numbers):
    return next(n for n in numbers if numbers.count(n) == 1)
-
def lonely(numbers):
    return 2 * sum(set(numbers)) - sum(numbers)

@ bit-distance 1
Write a function `bit_distance(a, b)` that returns at how many binary places two non-negative integers differ.
? bit_distance(0, 0) == 0
? bit_distance(1, 4) == 2
? bit_distance(7, 0) == 3
? bit_distance(10, 10) == 0
? bit_distance(255, 1) == 7
-
def bit_distance(a, b):
    return bin(a ^ b).count("1")
-
def bit_distance(a, b):
    count = 0
    while a or b:
        if a % 2 != b % 2:
            count += 1
        a //= 2
        b //= 2
    return count
-
def bit_distance(a, b):
    x, y = format(a, "b"), format(b, "b")
    size = max(len(x), len(y))
    return sum(p != q for p, q in zip(x.zfill(size), y.zfill(size)))

@ gray-code 2
Write a function `gray_codes(n)` that returns the list of all 2 ** n integers of `n` binary digits in the order i XOR
(i // 2) for i = 0, 1, 2, ..., in which neighbours differ in one digit.
? gray_codes(0) == [0]
? gray_codes(1) == [0, 1]
? gray_codes(2) == [0, 1, 3, 2]
? gray_codes(3) == [0, 1, 3, 2, 6, 7, 5, 4]
-
def gray_codes(n):
    return [i ^ i // 2 for i in range(2 ** n)]
-
def gray_codes(n):
    codes = [0]
    for bit in range(n):
        codes += [code + 2 ** bit for code in reversed(codes)]
    return codes
-
def gray_codes(n):
    if n == 0:
        return [0]
    smaller = gray_codes(n - 1)
    return smaller + [code | 1 << n - 1 for code in smaller[::-1]]

@ binary-gap 2
Write a function `binary_gap(n)` that returns the length of the longest run of zeros between two ones in the binary
form of the positive integer `n`, or 0.
? binary_gap(1) == 0
? binary_gap(5) == 1
? binary_gap(8) == 0
? binary_gap(9) == 2
? binary_gap(529) == 4
? binary_gap(20) == 1
? binary_gap(7) == 0
-
def binary_gap(n):
    parts = bin(n)[2:].strip("0").split("1")
    return max(len(part) for part in parts)
-
def binary_gap(n):
    best = 0
    last = None
    place = 0
    while n:
        if n & 1:
            if last is not None:
                best = max(best, place - last - 1)
            last = place
        n >>= 1
        place += 1
    return best
-
def binary_gap(n):
    while n % 2 == 0:
        n //= 2
    text = bin(n)[2:]
    gap = 0
    while "0" * (gap + 1) in text:
        gap += 1
    return gap

@ hanoi-moves 2
Write a function `hanoi(n, start, goal, spare)` that returns the list of moves (start, goal) as two-letter texts that
carry a tower of `n` discs from peg `start` to peg `goal`, in the shortest way; pegs are letters.
? hanoi(0, "A", "C", "B") == []
? hanoi(1, "A", "C", "B") == ["AC"]
? hanoi(2, "A", "C", "B") == ["AB", "AC", "BC"]
? hanoi(3, "A", "C", "B") == ["AC", "AB", "CB", "AC", "BA", "BC", "AC"]
? hanoi(2, "X", "Y", "Z") == ["XZ", "XY", "ZY"]
-
def hanoi(n, start, goal, spare):
    if n == 0:
        return []
    before = hanoi(n - 1, start, spare, goal)
    after = hanoi(n - 1, spare, goal, start)
    return before + [start + goal] + after
-
def hanoi(n, start, goal, spare):
    moves = []
    stack = [(n, start, goal, spare)]
    while stack:
        size, a, b, c = stack.pop()
        if size == 1:
            moves.append(a + b)
        elif size > 1:
            stack += [(size - 1, c, b, a), (1, a, b, c), (size - 1, a, c, b)]
    return moves

@ all-permutations 2
Write a function `arrangements(text)` that returns the sorted list of all different strings made by reordering the
characters of `text`.
? arrangements("") == [""]
? arrangements("a") == ["a"]
? arrangements("ba") == ["ab", "ba"]
? arrangements("aab") == ["aab", "aba", "baa"]
? arrangements("abc") == ["abc", "acb", "bac", "bca", "cab", "cba"]
-
from itertools import permutations

def arrangements(text):
    return sorted({"".join(p) for p in permutations(text)})
-
def arrangements(text):
    if not text:
        return [""]
    result = []
    for c in sorted(set(text)):
        for rest in arrangements(text.replace(c, "", 1)):
            result.append(c + rest)
    return result
-
def arrangements(text):
    found = {""}
    for c in text:
        found = {p[:i] + c + p[i:] for p in found for i in range(len(p) + 1)}
    return sorted(found)

@ subset-sum 3
Write a function `can_reach(numbers, target)` that tells whether some of the non-negative numbers of the list (each
used at most once, possibly none) add up to `target`.
? can_reach([], 0) == True
? can_reach([], 1) == False
? can_reach([3, 4], 7) == True
? can_reach([3, 4], 6) == False
? can_reach([2, 2, 5], 4) == True
? can_reach([8, 1, 6], 9) == True
? can_reach([5], 5) == True
-
def can_reach(numbers, target):
    sums = {0}
    for n in numbers:
        sums |= {total + n for total in sums}
    return target in sums
-
def can_reach(numbers, target):
    if target == 0:
        return True
    if not numbers:
        return False
    return can_reach(numbers[1:], target - numbers[0]) or can_reach(numbers[1:], target)
-
from itertools import combinations

def can_reach(numbers, target):
    for size in range(len(numbers) + 1):
        if any(sum(part) == target for part in combinations(numbers, size)):
            return True
    return False

@ flatten-deep 2
Write a function `deep_flatten(data)` that returns all values of arbitrarily nested lists as one flat list, in order.
? deep_flatten([]) == []
? deep_flatten([1, [2, [3]]]) == [1, 2, 3]
? deep_flatten([[], [[]]]) == []
? deep_flatten([[1], 2, [[3, 4], 5]]) == [1, 2, 3, 4, 5]
? deep_flatten(["ab", ["c"]]) == ["ab", "c"]
-
def deep_flatten(data):
    result = []
    for item in data:
        if isinstance(item, list):
            result.extend(deep_flatten(item))
        else:
            result.append(item)
    return result
-
def deep_flatten(data):
    stack = list(data)
    result = []
    while stack:
        item = stack.pop()
        if isinstance(item, list):
            stack.extend(item)
        else:
            result.insert(0, item)
    return result
-
def deep_flatten(data):
    while any(isinstance(item, list) for item in data):
        data = [inner for item in data for inner in (item if isinstance(item, list) else [item])]
    return data

@ list-depth 1
Write a function `depth(data)` that returns 0 for anything that is not a list, 1 for a list without inner lists, and
one more for each further level of nesting.
? depth(5) == 0
? depth([]) == 1
? depth([1, 2]) == 1
? depth([1, [2, [3]]]) == 3
? depth([[], [[]]]) == 3
? depth([[1], 2]) == 2
-
def depth(data):
    if not isinstance(data, list):
        return 0
    return 1 + max((depth(item) for item in data), default=0)
-
def depth(data):
    level = [data]
    count = 0
    while any(isinstance(item, list) for item in level):
        level = [inner for item in level if isinstance(item, list) for inner in item]
        count += 1
    return count
-
def depth(data):
    best = 0
    todo = [(data, 1)]
    while todo:
        item, level = todo.pop()
        if isinstance(item, list):
            best = max(best, level)
            todo += [(inner, level + 1) for inner in item]
    return best

@ stair-ways 2
Write a function `stair_ways(n, steps)` that counts the ways to climb a stair of `n` steps when each move climbs one
of the distinct positive numbers in the list `steps`; the order of moves matters.
? stair_ways(0, [1]) == 1
? stair_ways(4, [1, 2]) == 5
? stair_ways(3, [2]) == 0
? stair_ways(5, [1, 3]) == 4
? stair_ways(6, [2, 3]) == 2
? stair_ways(1, [1, 2, 3]) == 1
-
def stair_ways(n, steps):
    ways = [1]
    for height in range(1, n + 1):
        ways.append(sum(ways[height - s] for s in steps if s <= height))
    return ways[n]
-
def stair_ways(n, steps):
    if n == 0:
        return 1
    return sum(stair_ways(n - s, steps) for s in steps if s <= n)
-
def stair_ways(n, steps):
    ways = [0] * (n + 1)
    ways[0] = 1
    for height in range(n):
        for s in steps:
            if height + s <= n:
                ways[height + s] += ways[height]
    return ways[-1]

@ bracket-strings 3
Write a function `bracket_strings(n)` that returns the sorted list of all well-formed strings of `n` pairs of round
brackets.
? bracket_strings(0) == [""]
? bracket_strings(1) == ["()"]
? bracket_strings(2) == ["(())", "()()"]
? bracket_strings(3) == ["((()))", "(()())", "(())()", "()(())", "()()()"]
? len(bracket_strings(4)) == 14
-
def bracket_strings(n):
    result = []
    def grow(text, opened, closed):
        if closed == n:
            result.append(text)
        if opened < n:
            grow(text + "(", opened + 1, closed)
        if closed < opened:
            grow(text + ")", opened, closed + 1)
    grow("", 0, 0)
    return result
-
def bracket_strings(n):
    if n == 0:
        return [""]
    found = set()
    for text in bracket_strings(n - 1):
        for i in range(len(text) + 1):
            found.add(text[:i] + "()" + text[i:])
    return sorted(found)
-
def bracket_strings(n):
    if n == 0:
        return [""]
    result = []
    for k in range(n):
        for inside in bracket_strings(k):
            result += ["(" + inside + ")" + after for after in bracket_strings(n - 1 - k)]
    return sorted(result)

@ digit-combinations 2
Write a function `codes(choices)` that gets a list of strings and returns all strings made of one character from each
of them, in the order of the characters in the given strings.
? codes([]) == [""]
? codes(["ab"]) == ["a", "b"]
? codes(["ab", "cd"]) == ["ac", "ad", "bc", "bd"]
? codes(["x", "12", "y"]) == ["x1y", "x2y"]
? codes(["a", ""]) == []
-
from itertools import product

def codes(choices):
    return ["".join(letters) for letters in product(*choices)]
-
def codes(choices):
    result = [""]
    for letters in choices:
        result = [start + c for start in result for c in letters]
    return result
-
def codes(choices):
    if not choices:
        return [""]
    tails = codes(choices[1:])
    return [c + tail for c in choices[0] for tail in tails]

@ josephus-circle 3
Write a function `last_left(n, k)` that returns who is left when the people 1 to `n` stand in a circle and every k-th
one leaves, counting on from the place of the one who left; n and k are positive.
? last_left(1, 5) == 1
? last_left(2, 1) == 2
? last_left(5, 2) == 3
? last_left(7, 3) == 4
? last_left(6, 6) == 4
? last_left(10, 4) == 5
-
def last_left(n, k):
    people = list(range(1, n + 1))
    place = 0
    while len(people) > 1:
        place = (place + k - 1) % len(people)
        people.pop(place)
    return people[0]
-
def last_left(n, k):
    place = 0
    for size in range(2, n + 1):
        place = (place + k) % size
    return place + 1
-
from collections import deque

def last_left(n, k):
    circle = deque(range(1, n + 1))
    while len(circle) > 1:
        circle.rotate(1 - k)
        circle.popleft()
    return circle[0]

@ integer-partitions 3
Write a function `partitions(n)` that counts the ways to write the non-negative integer `n` as a sum of positive
integers when the order does not matter.
? partitions(0) == 1
? partitions(1) == 1
? partitions(4) == 5
? partitions(5) == 7
? partitions(7) == 15
? partitions(10) == 42
-
def partitions(n):
    ways = [1] + [0] * n
    for part in range(1, n + 1):
        for total in range(part, n + 1):
            ways[total] += ways[total - part]
    return ways[n]
-
def partitions(n, largest=None):
    if n == 0:
        return 1
    if largest is None:
        largest = n
    return sum(partitions(n - part, part) for part in range(1, min(n, largest) + 1))
-
def partitions(n):
    def count(rest, smallest):
        if rest == 0:
            return 1
        if rest < smallest:
            return 0
        return count(rest - smallest, smallest) + count(rest, smallest + 1)
    return count(n, 1)

@ queens-count 3
Write a function `queens(n)` that counts the ways to place `n` queens on an n-by-n board so that no two share a row, a
column or a diagonal.
? queens(0) == 1
? queens(1) == 1
? queens(2) == 0
? queens(3) == 0
? queens(4) == 2
? queens(5) == 10
-
from itertools import permutations

def queens(n):
    count = 0
    for rows in permutations(range(n)):
        down = {row - i for i, row in enumerate(rows)}
        up = {row + i for i, row in enumerate(rows)}
        count += len(down) == len(up) == n
    return count
-
def queens(n, placed=()):
    if len(placed) == n:
        return 1
    count = 0
    for row in range(n):
        gaps = [(abs(row - other), len(placed) - i) for i, other in enumerate(placed)]
        if all(gap != 0 and gap != distance for gap, distance in gaps):
            count += queens(n, placed + (row,))
    return count

@ quick-select 2
Write a function `kth_smallest(numbers, k)` that returns the k-th smallest number of a list, counted from one and
counting equal numbers separately; 1 <= k <= len(numbers).
? kth_smallest([3], 1) == 3
? kth_smallest([5, 1, 4], 1) == 1
? kth_smallest([5, 1, 4], 3) == 5
? kth_smallest([2, 2, 1, 3], 3) == 2
? kth_smallest([9, 8, 7, 6, 5], 2) == 6
? kth_smallest([4, 4, 4], 2) == 4
-
def kth_smallest(numbers, k):
    return sorted(numbers)[k - 1]
-
def kth_smallest(numbers, k):
    pivot = numbers[0]
    small = [n for n in numbers if n < pivot]
    large = [n for n in numbers if n > pivot]
    same = len(numbers) - len(small) - len(large)
    if k <= len(small):
        return kth_smallest(small, k)
    if k <= len(small) + same:
        return pivot
    return kth_smallest(large, k - len(small) - same)
-
from heapq import heapify, heappop

def kth_smallest(numbers, k):
    heap = list(numbers)
    heapify(heap)
    for _ in range(k - 1):
        heappop(heap)
    return heap[0]

@ tree-paths 2
Write a function `tree_sum(tree)` that gets a binary tree written as None or [value, left, right] and returns the
largest sum of values on a way from the root to a leaf; the empty tree gives 0. A leaf has two empty children.
? tree_sum(None) == 0
? tree_sum([5, None, None]) == 5
? tree_sum([1, [2, None, None], [3, None, None]]) == 4
? tree_sum([1, [-2, None, None], None]) == -1
? tree_sum([4, None, [1, [7, None, None], [2, None, None]]]) == 12
-
def tree_sum(tree):
    if tree is None:
        return 0
    value, left, right = tree
    sums = [tree_sum(child) for child in (left, right) if child is not None]
    return value + max(sums, default=0)
-
def tree_sum(tree):
    if tree is None:
        return 0
    best = None
    todo = [(tree, 0)]
    while todo:
        (value, left, right), above = todo.pop()
        total = above + value
        if left is None and right is None:
            best = total if best is None else max(best, total)
        todo += [(child, total) for child in (left, right) if child]
    return best

@ knapsack-value 3
Write a function `best_load(items, limit)` that gets a list of [weight, value] pairs with positive weights and returns
the largest total value of a choice of items whose total weight is at most `limit`; each item can be taken once.
? best_load([], 5) == 0
? best_load([[3, 10]], 2) == 0
? best_load([[3, 10]], 3) == 10
? best_load([[2, 3], [3, 4], [4, 6]], 5) == 7
? best_load([[1, 5], [1, 5]], 1) == 5
? best_load([[5, 9], [3, 5], [3, 5]], 6) == 10
-
def best_load(items, limit):
    best = [0] * (limit + 1)
    for weight, value in items:
        for room in range(limit, weight - 1, -1):
            best[room] = max(best[room], best[room - weight] + value)
    return best[limit]
-
def best_load(items, limit):
    if not items:
        return 0
    weight, value = items[0]
    without = best_load(items[1:], limit)
    if weight > limit:
        return without
    return max(without, value + best_load(items[1:], limit - weight))
-
from itertools import combinations

def best_load(items, limit):
    best = 0
    for size in range(1, len(items) + 1):
        for choice in combinations(items, size):
            if sum(w for w, _ in choice) <= limit:
                best = max(best, sum(v for _, v in choice))
    return best

@ merge-intervals 2
Write a function `merge_intervals(intervals)` that gets a list of [low, high] pairs and returns the sorted list of the
pairs that remain when all pairs that overlap or touch in a point are joined.
? merge_intervals([]) == []
? merge_intervals([[1, 3], [2, 5]]) == [[1, 5]]
? merge_intervals([[4, 6], [1, 2]]) == [[1, 2], [4, 6]]
? merge_intervals([[1, 2], [2, 3]]) == [[1, 3]]
? merge_intervals([[1, 9], [2, 3]]) == [[1, 9]]
? merge_intervals([[5, 8], [1, 3], [3, 4], [7, 10]]) == [[1, 4], [5, 10]]
-
def merge_intervals(intervals):
    result = []
    for low, high in sorted(intervals):
        if result and low <= result[-1][1]:
            result[-1][1] = max(result[-1][1], high)
        else:
            result.append([low, high])
    return result
-
def merge_intervals(intervals):
    ordered = sorted(intervals)
    if len(ordered) < 2:
        return ordered
    (a, b), (c, d) = ordered[:2]
    if c <= b:
        return merge_intervals([[a, max(b, d)]] + ordered[2:])
    return [[a, b]] + merge_intervals(ordered[1:])
-
def merge_intervals(intervals):
    events = sorted([(low, 0) for low, _ in intervals] + [(high, 1) for _, high in intervals])
    result = []
    active = 0
    for place, kind in events:
        if kind == 0:
            if active == 0:
                start = place
            active += 1
        else:
            active -= 1
            if active == 0:
                result.append([start, place])
    return result

@ change-ways 2
Write a function `change_ways(coins, amount)` that counts the ways to pay `amount` with any number of coins of the
distinct positive values in `coins`, where the order of the coins does not matter.
? change_ways([1, 2], 0) == 1
? change_ways([1, 2, 5], 5) == 4
? change_ways([2], 3) == 0
? change_ways([], 0) == 1
? change_ways([3, 5, 7], 15) == 3
? change_ways([2, 1], 4) == 3
-
def change_ways(coins, amount):
    ways = [1] + [0] * amount
    for coin in coins:
        for total in range(coin, amount + 1):
            ways[total] += ways[total - coin]
    return ways[amount]
-
def change_ways(coins, amount):
    if amount == 0:
        return 1
    if amount < 0 or not coins:
        return 0
    return change_ways(coins, amount - coins[0]) + change_ways(coins[1:], amount)
-
def change_ways(coins, amount):
    if not coins:
        return int(amount == 0)
    first, rest = coins[0], coins[1:]
    return sum(change_ways(rest, amount - used) for used in range(0, amount + 1, first))
"""
