"""Problems about strings."""

PROBLEMS = r"""
@ count-vowels 1
Write a function `count_vowels(text)` that returns how many letters of `text` are vowels (a, e, i, o, u),
whatever their case.
? count_vowels("") == 0
? count_vowels("sky") == 0
? count_vowels("Audio") == 4
? count_vowels("EIEIO") == 5
? count_vowels("u and I") == 3
-
def count_vowels(text):
    total = 0
    for letter in text.lower():
        if letter in "aeiou":
            total += 1
    return total
-
def count_vowels(text):
    return sum(1 for letter in text if letter in "aeiouAEIOU")
-
def count_vowels(text):
    low = text.lower()
    return sum(low.count(vowel) for vowel in "aeiou")

@ plain-palindrome 1
Write a function `is_palindrome(text)` that tells whether the letters and digits of `text` read the same in both
directions, ignoring case and every other character.
? is_palindrome("") == True
? is_palindrome("Never odd, or even!") == True
? is_palindrome("ab") == False
? is_palindrome("1 2 3 2 1") == True
? is_palindrome("abca") == False
? is_palindrome("x1y") == False
? is_palindrome("Aa") == True
-
def is_palindrome(text):
    kept = [c.lower() for c in text if c.isalnum()]
    return kept == kept[::-1]
-
def is_palindrome(text):
    left, right = 0, len(text) - 1
    while left < right:
        if not text[left].isalnum():
            left += 1
        elif not text[right].isalnum():
            right -= 1
        elif text[left].lower() != text[right].lower():
            return False
        else:
            left += 1
            right -= 1
    return True
-
def is_palindrome(text):
    kept = "".join(filter(str.isalnum, text)).lower()
    return all(kept[i] == kept[-1 - i] for i in range(len(kept) // 2))

@ reverse-words 1
Write a function `reverse_words(text)` that returns the words of `text` in reverse order, joined by single spaces.
? reverse_words("") == ""
? reverse_words("one") == "one"
? reverse_words("red green blue") == "blue green red"
? reverse_words("  a   b ") == "b a"
-
def reverse_words(text):
    return " ".join(text.split()[::-1])
-
def reverse_words(text):
    result = ""
    for word in text.split():
        if result:
            result = word + " " + result
        else:
            result = word
    return result
-
def reverse_words(text):
    words = text.split()
    words.reverse()
    return " ".join(words)

@ caesar-shift 2
Write a function `caesar(text, shift)` that moves every lower-case letter a-z `shift` places along the alphabet,
wrapping around, and leaves all other characters alone.
? caesar("abc", 1) == "bcd"
? caesar("xyz", 3) == "abc"
? caesar("Hi, zoo!", 1) == "Hj, app!"
? caesar("bad", -1) == "azc"
? caesar("same", 26) == "same"
? caesar("", 5) == ""
? caesar("`{", 1) == "`{"
-
def caesar(text, shift):
    result = []
    for c in text:
        if "a" <= c <= "z":
            c = chr((ord(c) - 97 + shift) % 26 + 97)
        result.append(c)
    return "".join(result)
-
def caesar(text, shift):
    letters = "abcdefghijklmnopqrstuvwxyz"
    k = shift % 26
    return text.translate(str.maketrans(letters, letters[k:] + letters[:k]))
-
def caesar(text, shift):
    letters = "abcdefghijklmnopqrstuvwxyz"
    return "".join(letters[(letters.index(c) + shift) % 26] if c in letters else c for c in text)

@ run-length-encode 2
Write a function `encode_runs(text)` that replaces each run of equal characters by the character followed by the
length of the run, so "aab" becomes "a2b1".
? encode_runs("") == ""
? encode_runs("z") == "z1"
? encode_runs("aab") == "a2b1"
? encode_runs("aabbba") == "a2b3a1"
? encode_runs("kkkkkkkkkkkk") == "k12"
-
def encode_runs(text):
    parts = []
    i = 0
    while i < len(text):
        j = i
        while j < len(text) and text[j] == text[i]:
            j += 1
        parts.append(text[i] + str(j - i))
        i = j
    return "".join(parts)
-
from itertools import groupby

def encode_runs(text):
    return "".join(key + str(len(list(run))) for key, run in groupby(text))
-
def encode_runs(text):
    if not text:
        return ""
    rest = text.lstrip(text[0])
    return text[0] + str(len(text) - len(rest)) + encode_runs(rest)

@ run-length-decode 2
Write a function `decode_runs(code)` that expands a string of letters, each followed by a decimal count, so "a2b10"
becomes two "a" and ten "b".
? decode_runs("") == ""
? decode_runs("a1") == "a"
? decode_runs("a2b3") == "aabbb"
? decode_runs("x10y1") == "xxxxxxxxxxy"
? decode_runs("q0r2") == "rr"
-
def decode_runs(code):
    result = ""
    i = 0
    while i < len(code):
        letter = code[i]
        i += 1
        count = 0
        while i < len(code) and code[i].isdigit():
            count = count * 10 + int(code[i])
            i += 1
        result += letter * count
    return result
-
import re

def decode_runs(code):
    return "".join(letter * int(count) for letter, count in re.findall("([a-z])([0-9]+)", code))
-
def decode_runs(code):
    result = []
    letter, digits = "", "0"
    for c in code + "$":
        if c.isdigit():
            digits += c
        else:
            result.append(letter * int(digits))
            letter, digits = c, "0"
    return "".join(result)

@ first-unique 1
Write a function `first_unique(text)` that returns the index of the first character that occurs exactly once in
`text`, or -1 when there is none.
? first_unique("") == -1
? first_unique("aabb") == -1
? first_unique("aabcb") == 3
? first_unique("xyx") == 1
? first_unique("q") == 0
? first_unique("aab") == 2
-
def first_unique(text):
    for i, c in enumerate(text):
        if text.count(c) == 1:
            return i
    return -1
-
def first_unique(text):
    counts = {}
    for c in text:
        counts[c] = counts.get(c, 0) + 1
    for i in range(len(text)):
        if counts[text[i]] == 1:
            return i
    return -1
-
def first_unique(text):
    places = [i for i, c in enumerate(text) if text.find(c) == text.rfind(c)]
    return min(places, default=-1)

@ anagram-check 1
Write a function `same_letters(a, b)` that tells whether the two strings are anagrams of each other, ignoring spaces
and case.
? same_letters("Dirty room", "dormitory") == True
? same_letters("", " ") == True
? same_letters("aab", "abb") == False
? same_letters("abc", "abcd") == False
? same_letters("abcd", "abc") == False
? same_letters("No", "on") == True
-
def same_letters(a, b):
    def key(text):
        return sorted(text.replace(" ", "").lower())
    return key(a) == key(b)
-
from collections import Counter

def same_letters(a, b):
    first = Counter(a.lower())
    second = Counter(b.lower())
    first.pop(" ", None)
    second.pop(" ", None)
    return first == second
-
def same_letters(a, b):
    rest = list(b.lower().replace(" ", ""))
    for c in a.lower().replace(" ", ""):
        if c not in rest:
            return False
        rest.remove(c)
    return not rest

@ longest-word 1
Write a function `longest_word(text)` that returns the longest word of `text` (words are separated by white space);
the first one wins a tie, and an empty text gives an empty string.
? longest_word("") == ""
? longest_word("a bb cc") == "bb"
? longest_word("three two one") == "three"
? longest_word("go to school") == "school"
? longest_word("   ") == ""
-
def longest_word(text):
    best = ""
    for word in text.split():
        if len(word) > len(best):
            best = word
    return best
-
def longest_word(text):
    return max(text.split(), key=len, default="")
-
def longest_word(text):
    words = sorted(text.split(), key=lambda word: -len(word))
    return words[0] if words else ""

@ capitalise-words 1
Write a function `capitalise(text)` that makes the first letter of every space-separated word upper case and leaves
the other characters and all spaces unchanged.
? capitalise("") == ""
? capitalise("hello big world") == "Hello Big World"
? capitalise("a  bC") == "A  BC"
? capitalise("x") == "X"
? capitalise("don't 4you ok") == "Don't 4you Ok"
-
def capitalise(text):
    return " ".join(word[:1].upper() + word[1:] for word in text.split(" "))
-
def capitalise(text):
    result = []
    start = True
    for c in text:
        result.append(c.upper() if start else c)
        start = c == " "
    return "".join(result)
-
def capitalise(text):
    result = ""
    for i in range(len(text)):
        if i == 0 or text[i - 1] == " ":
            result += text[i].upper()
        else:
            result += text[i]
    return result

@ unique-letters 1
Write a function `drop_repeats(text)` that keeps only the first occurrence of every character of `text`.
? drop_repeats("") == ""
? drop_repeats("banana") == "ban"
? drop_repeats("abc") == "abc"
? drop_repeats("zzz") == "z"
? drop_repeats("Aa aA") == "Aa "
-
def drop_repeats(text):
    result = ""
    for c in text:
        if c not in result:
            result += c
    return result
-
def drop_repeats(text):
    return "".join(dict.fromkeys(text))
-
def drop_repeats(text):
    return "".join(c for i, c in enumerate(text) if c not in text[:i])

@ count-overlapping 2
Write a function `count_overlapping(text, part)` that returns how often the non-empty string `part` occurs in `text`,
where occurrences may overlap.
? count_overlapping("aaaa", "aa") == 3
? count_overlapping("abc", "abc") == 1
? count_overlapping("abc", "abcd") == 0
? count_overlapping("ababa", "aba") == 2
? count_overlapping("", "x") == 0
? count_overlapping("xyz", "z") == 1
? count_overlapping("xax", "x") == 2
-
def count_overlapping(text, part):
    count = 0
    for i in range(len(text)):
        if text.startswith(part, i):
            count += 1
    return count
-
def count_overlapping(text, part):
    count = 0
    place = text.find(part)
    while place != -1:
        count += 1
        place = text.find(part, place + 1)
    return count
-
def count_overlapping(text, part):
    size = len(part)
    return sum(text[i:i + size] == part for i in range(len(text) - size + 1))

@ common-prefix 2
Write a function `common_prefix(words)` that returns the longest string with which every word of the list begins; an
empty list gives an empty string.
? common_prefix([]) == ""
? common_prefix(["tree"]) == "tree"
? common_prefix(["flow", "flower", "flat"]) == "fl"
? common_prefix(["abc", "ab"]) == "ab"
? common_prefix(["a", "b"]) == ""
? common_prefix(["", "x"]) == ""
? common_prefix(["axc", "ayc"]) == "a"
-
def common_prefix(words):
    if not words:
        return ""
    prefix = words[0]
    for word in words[1:]:
        while not word.startswith(prefix):
            prefix = prefix[:-1]
    return prefix
-
def common_prefix(words):
    result = ""
    for letters in zip(*words):
        if len(set(letters)) != 1:
            break
        result += letters[0]
    return result
-
def common_prefix(words):
    if not words:
        return ""
    low, high = min(words), max(words)
    size = 0
    while size < len(low) and low[size] == high[size]:
        size += 1
    return low[:size]

@ is-rotation 2
Write a function `is_rotation(a, b)` that tells whether `b` can be made from `a` by moving some characters from the
front to the end.
? is_rotation("", "") == True
? is_rotation("abc", "cab") == True
? is_rotation("abc", "bca") == True
? is_rotation("abc", "acb") == False
? is_rotation("ab", "abab") == False
? is_rotation("abc", "b") == False
? is_rotation("x", "x") == True
? is_rotation("abc", "bcab") == False
-
def is_rotation(a, b):
    return len(a) == len(b) and b in a + a
-
def is_rotation(a, b):
    if a == b:
        return True
    for i in range(len(a)):
        if a[i:] + a[:i] == b:
            return True
    return False
-
def is_rotation(a, b):
    if len(a) != len(b):
        return False
    for _ in range(len(a) + 1):
        if a == b:
            return True
        a = a[1:] + a[:1]
    return False

@ hamming-text 1
Write a function `differences(a, b)` that counts the positions at which two strings differ; positions that only the
longer string has count as differences.
? differences("", "") == 0
? differences("abc", "abc") == 0
? differences("abc", "axc") == 1
? differences("abc", "ab") == 1
? differences("a", "bcd") == 3
? differences("", "xy") == 2
? differences("karl", "carlo") == 2
-
def differences(a, b):
    count = abs(len(a) - len(b))
    for x, y in zip(a, b):
        if x != y:
            count += 1
    return count
-
from itertools import zip_longest

def differences(a, b):
    return sum(x != y for x, y in zip_longest(a, b))
-
def differences(a, b):
    same = sum(1 for x, y in zip(a, b) if x == y)
    return max(len(a), len(b)) - same

@ longest-run 2
Write a function `longest_run(text)` that returns the length of the longest run of equal neighbouring characters.
? longest_run("") == 0
? longest_run("a") == 1
? longest_run("abc") == 1
? longest_run("aabbb") == 3
? longest_run("xxxxyxx") == 4
? longest_run("abba") == 2
-
def longest_run(text):
    best = 0
    run = 0
    last = None
    for c in text:
        run = run + 1 if c == last else 1
        last = c
        best = max(best, run)
    return best
-
from itertools import groupby

def longest_run(text):
    return max((len(list(run)) for _, run in groupby(text)), default=0)
-
def longest_run(text):
    size = 0
    while any(c * (size + 1) in text for c in set(text)):
        size += 1
    return size

@ is-subsequence 2
Write a function `is_subsequence(small, big)` that tells whether the characters of `small` appear in `big` in the same
order, not necessarily next to each other.
? is_subsequence("", "abc") == True
? is_subsequence("ace", "abcde") == True
? is_subsequence("aec", "abcde") == False
? is_subsequence("aa", "a") == False
? is_subsequence("abc", "abc") == True
? is_subsequence("a", "") == False
? is_subsequence("bb", "abcb") == True
-
def is_subsequence(small, big):
    i = 0
    for c in big:
        if i < len(small) and small[i] == c:
            i += 1
    return i == len(small)
-
def is_subsequence(small, big):
    rest = iter(big)
    return all(c in rest for c in small)
-
def is_subsequence(small, big):
    if not small:
        return True
    place = big.find(small[0])
    if place < 0:
        return False
    return is_subsequence(small[1:], big[place + 1:])
-
def is_subsequence(small, big):
    place = -1
    for c in small:
        place = big.find(c, place + 1)
        if place == -1:
            return False
    return True

@ wrap-words 3
Write a function `wrap(text, width)` that splits the words of `text` into lines, putting as many words (joined by one
space) on each line as fit into `width` characters; no word is longer than `width`. Return the list of lines.
? wrap("", 5) == []
? wrap("a b c", 3) == ["a b", "c"]
? wrap("one two three", 7) == ["one two", "three"]
? wrap("one two three", 6) == ["one", "two", "three"]
? wrap("abc", 3) == ["abc"]
? wrap("a b c d e", 5) == ["a b c", "d e"]
-
def wrap(text, width):
    lines = []
    for word in text.split():
        if lines and len(lines[-1]) + 1 + len(word) <= width:
            lines[-1] += " " + word
        else:
            lines.append(word)
    return lines
-
def wrap(text, width):
    lines = []
    line = ""
    for word in text.split():
        longer = (line + " " + word).strip()
        if len(longer) > width:
            lines.append(line)
            longer = word
        line = longer
    if line:
        lines.append(line)
    return lines
-
def wrap(text, width):
    words = text.split()
    if not words:
        return []
    count = 1
    while count < len(words) and len(" ".join(words[:count + 1])) <= width:
        count += 1
    return [" ".join(words[:count])] + wrap(" ".join(words[count:]), width)

@ edit-distance 3
Write a function `edit_distance(a, b)` that returns the smallest number of single-character insertions, deletions and
replacements that turn `a` into `b`.
? edit_distance("", "") == 0
? edit_distance("abc", "") == 3
? edit_distance("", "ab") == 2
? edit_distance("cat", "cut") == 1
? edit_distance("flaw", "lawn") == 2
? edit_distance("sunday", "saturday") == 3
? edit_distance("ab", "ba") == 2
-
def edit_distance(a, b):
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        new = [i]
        for j, y in enumerate(b, 1):
            new.append(min(row[j] + 1, new[j - 1] + 1, row[j - 1] + (x != y)))
        row = new
    return row[-1]
-
def edit_distance(a, b):
    if not a or not b:
        return len(a) + len(b)
    if a[0] == b[0]:
        return edit_distance(a[1:], b[1:])
    return 1 + min(edit_distance(a[1:], b), edit_distance(a, b[1:]), edit_distance(a[1:], b[1:]))
-
from functools import cache

def edit_distance(a, b):
    @cache
    def cost(i, j):
        if i == 0 or j == 0:
            return i + j
        change = cost(i - 1, j - 1) + (a[i - 1] != b[j - 1])
        return min(change, cost(i - 1, j) + 1, cost(i, j - 1) + 1)
    return cost(len(a), len(b))

@ longest-palindrome 3
Write a function `longest_palindrome(text)` that returns the longest part of `text` (a run of neighbouring characters)
that reads the same in both directions; the leftmost one wins a tie.
? longest_palindrome("") == ""
? longest_palindrome("a") == "a"
? longest_palindrome("abc") == "a"
? longest_palindrome("babad") == "bab"
? longest_palindrome("xabba") == "abba"
? longest_palindrome("racecars") == "racecar"
? longest_palindrome("cbb") == "bb"
-
def longest_palindrome(text):
    best = ""
    for i in range(len(text)):
        for j in range(i + 1, len(text) + 1):
            part = text[i:j]
            if part == part[::-1] and len(part) > len(best):
                best = part
    return best
-
def longest_palindrome(text):
    best = ""
    for centre in range(2 * len(text)):
        left = centre // 2
        right = left + centre % 2
        while left >= 0 and right < len(text) and text[left] == text[right]:
            left -= 1
            right += 1
        if right - left - 1 > len(best):
            best = text[left + 1:right]
    return best
-
def longest_palindrome(text):
    for size in range(len(text), 0, -1):
        for start in range(len(text) - size + 1):
            part = text[start:start + size]
            if part == "".join(reversed(part)):
                return part
    return ""

@ interleave-strings 1
Write a function `interleave(a, b)` that takes characters from `a` and `b` in turn, starting with `a`, and appends
what is left of the longer string.
? interleave("", "") == ""
? interleave("ace", "bdf") == "abcdef"
? interleave("a", "xyz") == "axyz"
? interleave("abc", "x") == "axbc"
? interleave("", "q") == "q"
-
def interleave(a, b):
    result = ""
    for i in range(max(len(a), len(b))):
        result += a[i:i + 1] + b[i:i + 1]
    return result
-
def interleave(a, b):
    if not a:
        return b
    return a[0] + interleave(b, a[1:])
-
def interleave(a, b):
    size = min(len(a), len(b))
    pairs = [x + y for x, y in zip(a, b)]
    return "".join(pairs) + a[size:] + b[size:]

@ missing-letters 1
Write a function `missing_letters(text)` that returns, in alphabetical order, the lower-case letters a-z that do not
occur in `text` in either case.
? missing_letters("abcdefghijklmnopqrstuvwxyz") == ""
? missing_letters("") == "abcdefghijklmnopqrstuvwxyz"
? missing_letters("The quick brown fox jumps over a lazy cat") == "dg"
? missing_letters("BCDEFGHIJKLMNOPQRSTUVWXY") == "az"
-
def missing_letters(text):
    low = text.lower()
    return "".join(c for c in "abcdefghijklmnopqrstuvwxyz" if c not in low)
-
def missing_letters(text):
    letters = {chr(code) for code in range(ord("a"), ord("z") + 1)}
    return "".join(sorted(letters - set(text.lower())))
-
def missing_letters(text):
    result = "abcdefghijklmnopqrstuvwxyz"
    for c in text:
        result = result.replace(c.lower(), "")
    return result

@ pad-centre 2
Write a function `centre(text, width, fill)` that surrounds `text` with the character `fill` until it is `width` long;
when the padding is odd, the extra character goes to the right. A text that is long enough stays as it is.
? centre("ab", 6, "*") == "**ab**"
? centre("ab", 5, "-") == "-ab--"
? centre("abc", 3, ".") == "abc"
? centre("abcd", 2, ".") == "abcd"
? centre("", 1, "x") == "x"
? centre("abc", 4, "_") == "abc_"
-
def centre(text, width, fill):
    missing = max(0, width - len(text))
    left = missing // 2
    return fill * left + text + fill * (missing - left)
-
def centre(text, width, fill):
    right = True
    while len(text) < width:
        text = text + fill if right else fill + text
        right = not right
    return text
-
def centre(text, width, fill):
    left = (width - len(text)) // 2
    if left < 0:
        return text
    return text.rjust(len(text) + left, fill).ljust(width, fill)

@ mask-text 1
Write a function `mask(text, visible)` that replaces all but the last `visible` characters of `text` by "#".
? mask("12345678", 4) == "####5678"
? mask("abc", 3) == "abc"
? mask("abc", 5) == "abc"
? mask("abc", 0) == "###"
? mask("", 2) == ""
? mask("ab", 1) == "#b"
-
def mask(text, visible):
    hidden = max(0, len(text) - visible)
    return "#" * hidden + text[hidden:]
-
def mask(text, visible):
    result = ""
    for i, c in enumerate(text):
        if i < len(text) - visible:
            result += "#"
        else:
            result += c
    return result
-
def mask(text, visible):
    if len(text) <= visible:
        return text
    return "#" + mask(text[1:], visible)
"""
