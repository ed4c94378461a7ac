"""Problems about dictionaries, sets and graphs."""

PROBLEMS = r"""
@ word-count 1
Write a function `word_count(text)` that returns a dictionary from every white-space separated word of `text`, in
lower case, to the number of times it occurs.
? word_count("") == {}
? word_count("a b a") == {"a": 2, "b": 1}
? word_count("Go go GO") == {"go": 3}
? word_count("one  two") == {"one": 1, "two": 1}
-
def word_count(text):
    counts = {}
    for word in text.lower().split():
        counts[word] = counts.get(word, 0) + 1
    return counts
-
from collections import Counter

def word_count(text):
    return dict(Counter(text.lower().split()))
-
def word_count(text):
    words = [word.lower() for word in text.split()]
    return {word: words.count(word) for word in words}

@ invert-mapping 1
Write a function `invert(mapping)` that returns a dictionary from each value of `mapping` to the sorted list of keys
that have it.
? invert({}) == {}
? invert({"a": 1, "b": 2}) == {1: ["a"], 2: ["b"]}
? invert({"b": 1, "a": 1}) == {1: ["a", "b"]}
? invert({"z": 0, "x": 5, "y": 0}) == {0: ["y", "z"], 5: ["x"]}
-
def invert(mapping):
    result = {}
    for key in sorted(mapping):
        result.setdefault(mapping[key], []).append(key)
    return result
-
def invert(mapping):
    return {value: sorted(k for k, v in mapping.items() if v == value) for value in mapping.values()}
-
from collections import defaultdict

def invert(mapping):
    groups = defaultdict(list)
    for key, value in mapping.items():
        groups[value].append(key)
        groups[value].sort()
    return dict(groups)

@ group-by-length 1
Write a function `by_length(words)` that returns a dictionary from each word length that occurs to the list of words
of that length, in their old order.
? by_length([]) == {}
? by_length(["a", "bb", "c"]) == {1: ["a", "c"], 2: ["bb"]}
? by_length(["", "xyz"]) == {0: [""], 3: ["xyz"]}
? by_length(["to", "be"]) == {2: ["to", "be"]}
-
def by_length(words):
    groups = {}
    for word in words:
        if len(word) not in groups:
            groups[len(word)] = []
        groups[len(word)].append(word)
    return groups
-
def by_length(words):
    lengths = set(map(len, words))
    return {size: [word for word in words if len(word) == size] for size in lengths}
-
from itertools import groupby

def by_length(words):
    return {size: list(group) for size, group in groupby(sorted(words, key=len), key=len)}

@ add-mappings 1
Write a function `add_counts(a, b)` that returns a dictionary with the keys of both dictionaries in which the numbers
of equal keys are added, leaving out keys whose sum is zero.
? add_counts({}, {}) == {}
? add_counts({"x": 1}, {"x": 2, "y": 3}) == {"x": 3, "y": 3}
? add_counts({"x": 1}, {"x": -1}) == {}
? add_counts({"a": 5}, {"b": -2}) == {"a": 5, "b": -2}
? add_counts({"a": 0}, {}) == {}
-
def add_counts(a, b):
    result = dict(a)
    for key, value in b.items():
        result[key] = result.get(key, 0) + value
    return {key: value for key, value in result.items() if value != 0}
-
def add_counts(a, b):
    result = {}
    for key in set(a) | set(b):
        total = a.get(key, 0) + b.get(key, 0)
        if total:
            result[key] = total
    return result
-
def add_counts(a, b):
    result = {}
    for source in (a, b):
        for key in source:
            result[key] = source[key] + result.pop(key, 0)
    for key in list(result):
        if result[key] == 0:
            del result[key]
    return result

@ most-common-letter 1
Write a function `most_common(text)` that returns the letter that occurs most often in `text`, ignoring case and
everything that is not a letter; the alphabetically first one wins a tie. Without letters it returns None.
? most_common("") == None
? most_common("12 !") == None
? most_common("Banana") == "a"
? most_common("bBaA") == "a"
? most_common("zzz a") == "z"
? most_common("c  d    d") == "d"
-
def most_common(text):
    letters = sorted(c for c in text.lower() if c.isalpha())
    return max(letters, key=letters.count, default=None)
-
def most_common(text):
    counts = {}
    for c in text.lower():
        if c.isalpha():
            counts[c] = counts.get(c, 0) + 1
    if not counts:
        return None
    return min(counts, key=lambda c: (-counts[c], c))
-
def most_common(text):
    best, most = None, 0
    for c in "abcdefghijklmnopqrstuvwxyz":
        count = text.lower().count(c)
        if count > most:
            best, most = c, count
    return best

@ changed-keys 2
Write a function `changed_keys(old, new)` that returns the sorted list of the keys that only one of the two
dictionaries has or whose values differ.
? changed_keys({}, {}) == []
? changed_keys({"a": 1}, {"a": 1}) == []
? changed_keys({"a": 1}, {"a": 2}) == ["a"]
? changed_keys({"b": 1}, {"a": 1}) == ["a", "b"]
? changed_keys({"x": 0, "y": 5}, {"y": 5}) == ["x"]
? changed_keys({"y": 5}, {"y": 5, "z": 0}) == ["z"]
-
def changed_keys(old, new):
    changed = []
    for key in sorted(set(old) | set(new)):
        if key not in old or key not in new or old[key] != new[key]:
            changed.append(key)
    return changed
-
def changed_keys(old, new):
    return sorted({key for key, _ in old.items() ^ new.items()})
-
def changed_keys(old, new):
    missing = object()
    keys = list(old) + [key for key in new if key not in old]
    return sorted(key for key in keys if old.get(key, missing) != new.get(key, missing))

@ overlap-percent 1
Write a function `overlap(a, b)` that returns how many percent, rounded down, of the distinct items of both lists
occur in both; two empty lists give 100.
? overlap([], []) == 100
? overlap([1], []) == 0
? overlap([1, 2], [2, 3]) == 33
? overlap([1, 1, 2], [2, 1]) == 100
? overlap([1, 2, 3, 4], [4]) == 25
-
def overlap(a, b):
    together = set(a) | set(b)
    if not together:
        return 100
    return 100 * len(set(a) & set(b)) // len(together)
-
def overlap(a, b):
    distinct = list(dict.fromkeys(a + b))
    common = [item for item in distinct if item in a and item in b]
    return len(common) * 100 // len(distinct) if distinct else 100
-
def overlap(a, b):
    if not a and not b:
        return 100
    first, second = set(a), set(b)
    shared = sum(item in second for item in first)
    return shared * 100 // (len(first) + len(second) - shared)

@ nested-lookup 2
Write a function `lookup(data, path, default)` that follows the dot-separated keys of `path` through nested
dictionaries and returns the value it finds, or `default` as soon as a key is missing.
? lookup({"a": 1}, "a", 0) == 1
? lookup({"a": {"b": 2}}, "a.b", 0) == 2
? lookup({"a": {"b": 2}}, "a.c", 9) == 9
? lookup({}, "x.y", None) == None
? lookup({"a": 1}, "a.b", 5) == 5
? lookup({"a": {"b": {"c": 0}}}, "a.b.c", 7) == 0
-
def lookup(data, path, default):
    for key in path.split("."):
        if not isinstance(data, dict) or key not in data:
            return default
        data = data[key]
    return data
-
def lookup(data, path, default):
    first, dot, rest = path.partition(".")
    if not isinstance(data, dict) or first not in data:
        return default
    return lookup(data[first], rest, default) if dot else data[first]
-
def lookup(data, path, default):
    try:
        for key in path.split("."):
            data = data[key]
    except (KeyError, TypeError):
        return default
    return data

@ flatten-mapping 2
Write a function `flatten_keys(data)` that turns nested dictionaries into one dictionary whose keys are the paths of
keys joined by "/"; empty inner dictionaries disappear.
? flatten_keys({}) == {}
? flatten_keys({"a": 1}) == {"a": 1}
? flatten_keys({"a": {"b": 2, "c": 3}}) == {"a/b": 2, "a/c": 3}
? flatten_keys({"a": {}, "d": 4}) == {"d": 4}
? flatten_keys({"x": {"y": {"z": 0}}}) == {"x/y/z": 0}
-
def flatten_keys(data):
    result = {}
    for key, value in data.items():
        if isinstance(value, dict):
            for inner, item in flatten_keys(value).items():
                result[key + "/" + inner] = item
        else:
            result[key] = value
    return result
-
def flatten_keys(data):
    result = {}
    stack = list(data.items())
    while stack:
        path, value = stack.pop()
        if isinstance(value, dict):
            stack.extend((path + "/" + key, item) for key, item in value.items())
        else:
            result[path] = value
    return result
-
def flatten_keys(data, prefix=""):
    result = {}
    for key, value in data.items():
        if isinstance(value, dict):
            result.update(flatten_keys(value, prefix + key + "/"))
        else:
            result[prefix + key] = value
    return result

@ top-scorers 1
Write a function `top_scorers(scores)` that gets a dictionary from names to points and returns the sorted names of all
who have the most points.
? top_scorers({}) == []
? top_scorers({"ann": 3}) == ["ann"]
? top_scorers({"bob": 5, "ann": 5, "cid": 1}) == ["ann", "bob"]
? top_scorers({"x": -2, "y": -1}) == ["y"]
? top_scorers({"a": 0, "b": 7, "c": 0}) == ["b"]
-
def top_scorers(scores):
    best = max(scores.values(), default=0)
    return sorted(name for name, points in scores.items() if points == best)
-
def top_scorers(scores):
    names = []
    best = None
    for name in sorted(scores):
        if best is None or scores[name] > best:
            best = scores[name]
            names = [name]
        elif scores[name] == best:
            names.append(name)
    return names
-
def top_scorers(scores):
    groups = {}
    for name, points in sorted(scores.items()):
        groups.setdefault(points, []).append(name)
    return groups[max(groups)] if groups else []

@ line-index 2
Write a function `index_words(lines)` that returns a dictionary from every word to the list of the numbers (from one)
of the lines that contain it, each number once, in increasing order.
? index_words([]) == {}
? index_words(["a b", "b"]) == {"a": [1], "b": [1, 2]}
? index_words(["x x", "", "x"]) == {"x": [1, 3]}
? index_words(["", "word"]) == {"word": [2]}
-
def index_words(lines):
    index = {}
    for number, line in enumerate(lines, 1):
        for word in set(line.split()):
            index.setdefault(word, []).append(number)
    return index
-
def index_words(lines):
    index = {}
    for i in range(len(lines)):
        for word in lines[i].split():
            numbers = index.setdefault(word, [])
            if i + 1 not in numbers:
                numbers.append(i + 1)
    return index
-
def index_words(lines):
    rows = [line.split() for line in lines]
    words = {word for row in rows for word in row}
    return {word: [n for n, row in enumerate(rows, 1) if word in row] for word in words}

@ all-subsets 2
Write a function `subsets(items)` that returns all subsets of a list of distinct numbers as sorted lists, the smaller
subsets first and subsets of the same size in increasing order.
? subsets([]) == [[]]
? subsets([1]) == [[], [1]]
? subsets([2, 1]) == [[], [1], [2], [1, 2]]
? subsets([1, 2, 3]) == [[], [1], [2], [3], [1, 2], [1, 3], [2, 3], [1, 2, 3]]
-
from itertools import combinations

def subsets(items):
    ordered = sorted(items)
    return [list(part) for size in range(len(ordered) + 1) for part in combinations(ordered, size)]
-
def subsets(items):
    result = [[]]
    for item in sorted(items):
        result += [part + [item] for part in result]
    return sorted(result, key=lambda part: (len(part), part))
-
def subsets(items):
    ordered = sorted(items)
    result = []
    for mask in range(2 ** len(ordered)):
        result.append([n for i, n in enumerate(ordered) if mask >> i & 1])
    result.sort()
    result.sort(key=len)
    return result

@ rename-keys 1
Write a function `rename(record, names)` that returns a copy of the dictionary `record` in which every key found in
`names` is replaced by names[key] and all values are kept.
? rename({}, {"a": "b"}) == {}
? rename({"a": 1, "c": 2}, {"a": "b"}) == {"b": 1, "c": 2}
? rename({"a": 1, "b": 2}, {"a": "b", "b": "a"}) == {"b": 1, "a": 2}
? rename({"x": 0}, {}) == {"x": 0}
-
def rename(record, names):
    return {names.get(key, key): value for key, value in record.items()}
-
def rename(record, names):
    result = {}
    for key in record:
        if key in names:
            result[names[key]] = record[key]
        else:
            result[key] = record[key]
    return result
-
def rename(record, names):
    keys = [names[key] if key in names else key for key in record]
    return dict(zip(keys, record.values()))

@ top-k-frequent 2
Write a function `most_frequent(items, k)` that returns the `k` most frequent numbers of a list, the most frequent
first and smaller numbers first among equally frequent ones.
? most_frequent([], 2) == []
? most_frequent([1, 1, 2], 1) == [1]
? most_frequent([3, 2, 3, 2, 1], 2) == [2, 3]
? most_frequent([5, 4], 5) == [4, 5]
? most_frequent([7, 8, 8, 9, 9, 9], 2) == [9, 8]
? most_frequent([1, 2], 0) == []
-
def most_frequent(items, k):
    ranked = sorted(set(items), key=lambda n: (-items.count(n), n))
    return ranked[:k]
-
from collections import Counter

def most_frequent(items, k):
    return [n for n, _ in Counter(sorted(items)).most_common(k)]
-
def most_frequent(items, k):
    counts = {}
    for n in items:
        counts[n] = counts.get(n, 0) + 1
    result = []
    while counts and len(result) < k:
        best = min(n for n in counts if counts[n] == max(counts.values()))
        result.append(best)
        del counts[best]
    return result

@ reachable-nodes 3
Write a function `reachable(graph, start)` that returns the sorted list of all nodes that can be reached from `start`
(itself included) in a directed graph given as a dictionary from a node to the list of its successors; nodes without
successors may be missing from it.
? reachable({}, "a") == ["a"]
? reachable({"a": ["b"], "b": ["c"]}, "a") == ["a", "b", "c"]
? reachable({"a": ["b"], "b": ["a"]}, "b") == ["a", "b"]
? reachable({"a": ["b"], "c": ["a"]}, "a") == ["a", "b"]
? reachable({1: [3, 2], 2: [4], 3: [4], 4: [1], 5: [1]}, 3) == [1, 2, 3, 4]
-
def reachable(graph, start):
    seen = {start}
    stack = [start]
    while stack:
        for node in graph.get(stack.pop(), []):
            if node not in seen:
                seen.add(node)
                stack.append(node)
    return sorted(seen)
-
def reachable(graph, start):
    seen = set()
    def visit(node):
        if node not in seen:
            seen.add(node)
            for following in graph.get(node, []):
                visit(following)
    visit(start)
    return sorted(seen)
-
def reachable(graph, start):
    found = {start}
    size = 0
    while size < len(found):
        size = len(found)
        for node in list(found):
            found.update(graph.get(node, []))
    return sorted(found)

@ component-count 3
Write a function `components(n, edges)` that returns the number of connected components of the undirected graph with
the nodes 0 to n - 1 and the given list of edges [a, b].
? components(0, []) == 0
? components(3, []) == 3
? components(3, [[0, 1]]) == 2
? components(4, [[0, 1], [2, 3]]) == 2
? components(4, [[0, 1], [1, 2], [2, 0]]) == 2
? components(5, [[4, 3], [3, 2], [1, 0], [2, 1]]) == 1
-
def components(n, edges):
    group = list(range(n))
    for a, b in edges:
        old, new = group[a], group[b]
        group = [new if g == old else g for g in group]
    return len(set(group))
-
def components(n, edges):
    parent = list(range(n))
    def root(node):
        while parent[node] != node:
            node = parent[node]
        return node
    count = n
    for a, b in edges:
        if root(a) != root(b):
            parent[root(a)] = root(b)
            count -= 1
    return count
-
def components(n, edges):
    left = set(range(n))
    count = 0
    while left:
        count += 1
        todo = [left.pop()]
        while todo:
            node = todo.pop()
            near = {a + b - node for a, b in edges if node in (a, b)} & left
            left -= near
            todo.extend(near)
    return count

@ dependency-order 3
Write a function `build_order(needs)` that gets a dictionary from every task to the list of tasks that must come
before it and returns all tasks in an allowed order, always taking the alphabetically first task that is ready; if
there is a cycle it returns an empty list.
? build_order({}) == []
? build_order({"a": []}) == ["a"]
? build_order({"a": ["b"], "b": []}) == ["b", "a"]
? build_order({"a": ["b"], "b": ["a"]}) == []
? build_order({"c": [], "b": ["c"], "a": ["c"]}) == ["c", "a", "b"]
? build_order({"z": [], "a": ["z"], "m": []}) == ["m", "z", "a"]
-
def build_order(needs):
    order = []
    while len(order) < len(needs):
        ready = [t for t in needs if t not in order and all(n in order for n in needs[t])]
        if not ready:
            return []
        order.append(min(ready))
    return order
-
from heapq import heapify, heappop, heappush

def build_order(needs):
    waiting = {task: set(before) for task, before in needs.items()}
    ready = [task for task in needs if not needs[task]]
    heapify(ready)
    order = []
    while ready:
        done = heappop(ready)
        order.append(done)
        for task, before in waiting.items():
            if done in before:
                before.remove(done)
                if not before:
                    heappush(ready, task)
    return order if len(order) == len(needs) else []
-
def build_order(needs, done=()):
    if len(done) == len(needs):
        return list(done)
    for task in sorted(set(needs) - set(done)):
        if set(needs[task]) <= set(done):
            return build_order(needs, done + (task,))
    return []

@ word-pattern 2
Write a function `same_pattern(a, b)` that tells whether the characters of `a` can be replaced one for one to give
`b`: equal characters become equal ones and different characters become different ones.
? same_pattern("", "") == True
? same_pattern("egg", "add") == True
? same_pattern("foo", "bar") == False
? same_pattern("ab", "aa") == False
? same_pattern("abc", "ab") == False
? same_pattern("ab", "abc") == False
? same_pattern("paper", "title") == True
-
def same_pattern(a, b):
    if len(a) != len(b):
        return False
    return len(set(zip(a, b))) == len(set(a)) == len(set(b))
-
def same_pattern(a, b):
    return [a.index(c) for c in a] == [b.index(c) for c in b]
-
def same_pattern(a, b):
    if len(a) != len(b):
        return False
    forward, backward = {}, {}
    for x, y in zip(a, b):
        if forward.setdefault(x, y) != y or backward.setdefault(y, x) != x:
            return False
    return True

@ common-to-all 1
Write a function `in_all(lists)` that returns the sorted distinct numbers that occur in every one of the lists;
without any list the result is empty.
? in_all([]) == []
? in_all([[2, 1, 2]]) == [1, 2]
? in_all([[1, 2], [2, 3]]) == [2]
? in_all([[1], [2]]) == []
? in_all([[3, 1, 2], [1, 3], [4, 3, 1]]) == [1, 3]
-
def in_all(lists):
    if not lists:
        return []
    common = set(lists[0])
    for items in lists[1:]:
        common &= set(items)
    return sorted(common)
-
def in_all(lists):
    numbers = {n for items in lists for n in items}
    return sorted(n for n in numbers if all(n in items for items in lists))
-
def in_all(lists):
    counts = {}
    for items in lists:
        for n in set(items):
            counts[n] = counts.get(n, 0) + 1
    return sorted(n for n in counts if counts[n] == len(lists))

@ seating-conflicts 2
Write a function `two_groups(pairs)` that tells whether all people named in `pairs` can be put into two groups such
that the two people of every pair are in different groups.
? two_groups([]) == True
? two_groups([["a", "b"]]) == True
? two_groups([["a", "b"], ["b", "c"], ["c", "a"]]) == False
? two_groups([["a", "b"], ["b", "c"], ["c", "d"], ["d", "a"]]) == True
? two_groups([["a", "a"]]) == False
? two_groups([["a", "b"], ["x", "y"], ["y", "z"], ["z", "x"]]) == False
-
from itertools import product

def two_groups(pairs):
    people = sorted({person for pair in pairs for person in pair})
    for choice in product([0, 1], repeat=len(people)):
        group = dict(zip(people, choice))
        if all(group[a] != group[b] for a, b in pairs):
            return True
    return False
-
def two_groups(pairs):
    group = {}
    def place(person, number):
        if person in group:
            return group[person] == number
        group[person] = number
        near = [a if b == person else b for a, b in pairs if person in (a, b)]
        return all(place(other, 1 - number) for other in near)
    return all(a in group or place(a, 0) for a, _ in pairs)
"""
