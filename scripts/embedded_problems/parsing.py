"""Problems about dates, times and simple parsing."""

PROBLEMS = r"""
@ leap-year 1
Write a function `is_leap(year)` that tells whether a year has 366 days: every fourth year does, except full centuries
that are not divisible by 400.
? is_leap(2024) == True
? is_leap(2023) == False
? is_leap(1900) == False
? is_leap(2000) == True
? is_leap(2100) == False
? is_leap(1996) == True
? is_leap(2022) == False
-
def is_leap(year):
    return year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
-
def is_leap(year):
    if year % 400 == 0:
        return True
    if year % 100 == 0:
        return False
    return year % 4 == 0
-
def is_leap(year):
    if year % 100 == 0:
        year //= 100
    return year & 3 == 0

@ days-in-month 1
Write a function `days_in_month(month, leap)` that returns the number of days of a month (1 to 12); `leap` says
whether the year is a leap year. Any other month gives 0.
? days_in_month(1, False) == 31
? days_in_month(2, False) == 28
? days_in_month(2, True) == 29
? days_in_month(4, True) == 30
? days_in_month(12, False) == 31
? days_in_month(13, False) == 0
? days_in_month(0, True) == 0
? days_in_month(7, True) + days_in_month(8, False) + days_in_month(9, False) == 92
-
def days_in_month(month, leap):
    days = [0, 31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31]
    if not 1 <= month <= 12:
        return 0
    if month == 2 and leap:
        return 29
    return days[month]
-
def days_in_month(month, leap):
    if month == 2:
        return 29 if leap else 28
    if month in (4, 6, 9, 11):
        return 30
    return 31 if 0 < month < 13 else 0
-
def days_in_month(month, leap):
    if month < 1 or month > 12:
        return 0
    if month == 2:
        return 28 + bool(leap)
    return 30 + (month + month // 8) % 2

@ day-of-year 2
Write a function `day_of_year(year, month, day)` that returns the number of a valid date within its year, so 1 January
is day 1; leap years follow the usual rule.
? day_of_year(2023, 1, 1) == 1
? day_of_year(2023, 3, 1) == 60
? day_of_year(2024, 3, 1) == 61
? day_of_year(2023, 12, 31) == 365
? day_of_year(2000, 12, 31) == 366
? day_of_year(1900, 12, 30) == 364
? day_of_year(2024, 2, 29) == 60
-
def day_of_year(year, month, day):
    days = [31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31]
    if year % 4 == 0 and (year % 100 != 0 or year % 400 == 0):
        days[1] = 29
    return sum(days[:month - 1]) + day
-
def day_of_year(year, month, day):
    starts = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334]
    leap = year % 400 == 0 if year % 100 == 0 else year % 4 == 0
    extra = 1 if leap and month > 2 else 0
    return starts[month - 1] + day + extra
-
def day_of_year(year, month, day):
    total = day
    for m in range(1, month):
        if m == 2:
            total += 29 if year % (400 if year % 100 == 0 else 4) == 0 else 28
        else:
            total += 30 if m in (4, 6, 9, 11) else 31
    return total

@ weekday-name 2
Write a function `weekday_after(day, count)` that gets a weekday name such as "Mon" (Mon, Tue, Wed, Thu, Fri, Sat,
Sun) and returns the name of the day `count` days later, or earlier when `count` is negative.
? weekday_after("Mon", 0) == "Mon"
? weekday_after("Mon", 1) == "Tue"
? weekday_after("Sun", 1) == "Mon"
? weekday_after("Wed", -3) == "Sun"
? weekday_after("Fri", 16) == "Sun"
? weekday_after("Thu", -14) == "Thu"
-
def weekday_after(day, count):
    names = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"]
    return names[(names.index(day) + count) % 7]
-
def weekday_after(day, count):
    names = "MonTueWedThuFriSatSun"
    start = (names.find(day) + 3 * count) % len(names)
    return names[start:start + 3]
-
def weekday_after(day, count):
    following = {"Mon": "Tue", "Tue": "Wed", "Wed": "Thu", "Thu": "Fri", "Fri": "Sat", "Sat": "Sun", "Sun": "Mon"}
    for _ in range(count % 7):
        day = following[day]
    return day

@ clock-to-minutes 1
Write a function `minutes(clock)` that converts a 12-hour clock time such as "9:05 pm" to the number of minutes since
midnight; "12:00 am" is midnight.
? minutes("12:00 am") == 0
? minutes("12:30 pm") == 750
? minutes("9:05 pm") == 1265
? minutes("1:00 am") == 60
? minutes("11:59 pm") == 1439
? minutes("10:10 am") == 610
-
def minutes(clock):
    time, half = clock.split()
    hour, minute = time.split(":")
    total = int(hour) % 12 * 60 + int(minute)
    if half == "pm":
        total += 720
    return total
-
def minutes(clock):
    hour = int(clock[:clock.index(":")])
    minute = int(clock[-5:-3])
    if hour == 12:
        hour = 0
    return (hour + 12 * clock.endswith("pm")) * 60 + minute
-
import re

def minutes(clock):
    hour, minute, half = re.match("([0-9]+):([0-9]+) ([ap])m", clock).groups()
    hour = int(hour)
    if half == "a" and hour == 12:
        hour = 0
    elif half == "p" and hour != 12:
        hour += 12
    return hour * 60 + int(minute)

@ format-duration 2
Write a function `duration(seconds)` that writes a non-negative number of seconds as text like "1h 2m 3s", leaving out
parts that are zero; zero seconds give "0s".
? duration(0) == "0s"
? duration(59) == "59s"
? duration(60) == "1m"
? duration(3723) == "1h 2m 3s"
? duration(7200) == "2h"
? duration(3601) == "1h 1s"
? duration(90000) == "25h"
-
def duration(seconds):
    parts = []
    for size, unit in [(3600, "h"), (60, "m"), (1, "s")]:
        if seconds >= size:
            parts.append(str(seconds // size) + unit)
            seconds %= size
    return " ".join(parts) or "0s"
-
def duration(seconds):
    minutes, s = divmod(seconds, 60)
    h, m = divmod(minutes, 60)
    text = ""
    if h:
        text += str(h) + "h "
    if m:
        text += str(m) + "m "
    if s or not text:
        text += str(s) + "s"
    return text.strip()
-
def duration(seconds):
    counts = [seconds // 3600, seconds // 60 % 60, seconds % 60]
    parts = [str(count) + unit for count, unit in zip(counts, "hms") if count > 0]
    return " ".join(parts if parts else ["0s"])

@ valid-date 2
Write a function `valid_date(text)` that tells whether a text of the form "dd-mm" (always two digits each) names a day
that exists in a year that is not a leap year.
? valid_date("01-01") == True
? valid_date("31-12") == True
? valid_date("29-02") == False
? valid_date("31-04") == False
? valid_date("00-05") == False
? valid_date("10-13") == False
? valid_date("30-09") == True
? valid_date("28-02") == True
-
def valid_date(text):
    day, month = int(text[:2]), int(text[3:])
    if month < 1 or month > 12 or day < 1:
        return False
    if month == 2:
        return day <= 28
    return day <= (30 if month in (4, 6, 9, 11) else 31)
-
def valid_date(text):
    day, month = text.split("-")
    lengths = {"01": 31, "02": 28, "03": 31, "04": 30, "05": 31, "06": 30}
    lengths.update({"07": 31, "08": 31, "09": 30, "10": 31, "11": 30, "12": 31})
    return 0 < int(day) <= lengths.get(month, 0)
-
def valid_date(text):
    days = [31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31]
    dates = [(d, m) for m, size in enumerate(days, 1) for d in range(1, size + 1)]
    day, month = map(int, text.split("-"))
    return (day, month) in dates

@ balanced-brackets 2
Write a function `balanced(text)` that tells whether the brackets (), [] and {} in `text` are closed properly in the
right order; other characters do not matter.
? balanced("") == True
? balanced("a(b)[c]{}") == True
? balanced("([)]") == False
? balanced("(") == False
? balanced(")") == False
? balanced("{[()]}x") == True
? balanced("(]") == False
-
def balanced(text):
    closing = {"(": ")", "[": "]", "{": "}"}
    stack = []
    for c in text:
        if c in closing:
            stack.append(closing[c])
        elif c in ")]}":
            if not stack or stack.pop() != c:
                return False
    return not stack
-
def balanced(text):
    kept = "".join(c for c in text if c in "()[]{}")
    while "()" in kept or "[]" in kept or "{}" in kept:
        kept = kept.replace("()", "").replace("[]", "").replace("{}", "")
    return kept == ""
-
import re

def balanced(text):
    inner = re.sub(r"\([^][(){}]*\)|\[[^][(){}]*\]|\{[^][(){}]*\}", "", text)
    if inner != text:
        return balanced(inner)
    return not any(c in text for c in "()[]{}")

@ parse-settings 1
Write a function `parse_settings(text)` that reads lines of the form "key = value" into a dictionary of strings
without surrounding spaces; empty lines and lines that start with "#" are skipped. Values may contain "=".
? parse_settings("") == {}
? parse_settings("a = 1") == {"a": "1"}
? parse_settings("# note\na=b\n\nc = d e ") == {"a": "b", "c": "d e"}
? parse_settings("x = y=z") == {"x": "y=z"}
? parse_settings("k =\nk = 2") == {"k": "2"}
? parse_settings("k=#v\n#k=w") == {"k": "#v"}
-
def parse_settings(text):
    settings = {}
    for line in text.split("\n"):
        if line and not line.startswith("#"):
            key, _, value = line.partition("=")
            settings[key.strip()] = value.strip()
    return settings
-
import re

def parse_settings(text):
    found = re.findall(r"^([^#=\n][^=\n]*)=(.*)$", text, re.MULTILINE)
    return {key.strip(): value.strip() for key, value in found}
-
def parse_settings(text):
    lines = [line for line in text.splitlines() if line != "" and line[0] != "#"]
    pairs = [line.split("=", 1) for line in lines]
    return dict([part.strip() for part in pair] for pair in pairs)

@ parse-ranges 2
Write a function `expand_ranges(text)` that turns a text like "1-3,7" into the list of the integers it names, in the
given order; an empty text gives an empty list and all numbers are non-negative.
? expand_ranges("") == []
? expand_ranges("5") == [5]
? expand_ranges("1-3,7") == [1, 2, 3, 7]
? expand_ranges("4-4") == [4]
? expand_ranges("9,2-4") == [9, 2, 3, 4]
? expand_ranges("10-12") == [10, 11, 12]
-
def expand_ranges(text):
    result = []
    for part in text.split(","):
        if "-" in part:
            low, high = part.split("-")
            result.extend(range(int(low), int(high) + 1))
        elif part:
            result.append(int(part))
    return result
-
import re

def expand_ranges(text):
    pairs = re.findall("([0-9]+)(?:-([0-9]+))?", text)
    return [n for low, high in pairs for n in range(int(low), int(high or low) + 1)]
-
def expand_ranges(text):
    if text == "":
        return []
    head, _, tail = text.partition(",")
    ends = [int(n) for n in head.split("-")]
    return list(range(ends[0], ends[-1] + 1)) + expand_ranges(tail)

@ reverse-polish 2
Write a function `evaluate(text)` that computes an expression in reverse Polish notation made of integers and the
operators +, - and *, separated by spaces, so "4 1 -" is 3.
? evaluate("7") == 7
? evaluate("4 1 -") == 3
? evaluate("2 3 + 4 *") == 20
? evaluate("2 3 4 + *") == 14
? evaluate("5 1 2 - -") == 6
? evaluate("-3 2 *") == -6
-
def evaluate(text):
    stack = []
    for token in text.split():
        if token in ("+", "-", "*"):
            b = stack.pop()
            a = stack.pop()
            stack.append(a + b if token == "+" else a - b if token == "-" else a * b)
        else:
            stack.append(int(token))
    return stack[0]
-
from operator import add, mul, sub

def evaluate(text):
    tokens = text.split()
    actions = {"+": add, "-": sub, "*": mul}
    def value():
        token = tokens.pop()
        if token not in actions:
            return int(token)
        right = value()
        return actions[token](value(), right)
    return value()
-
def evaluate(text):
    items = text.split()
    while len(items) > 1:
        i = min(k for k, item in enumerate(items) if item in ["+", "-", "*"])
        a, b = int(items[i - 2]), int(items[i - 1])
        result = {"+": a + b, "-": a - b, "*": a * b}[items[i]]
        items[i - 2:i + 1] = [str(result)]
    return int(items[0])

@ sum-and-product 3
Write a function `calculate(text)` that computes an expression made of non-negative integers, "+" and "*" without
spaces or brackets, where products come before sums.
? calculate("5") == 5
? calculate("2+3") == 5
? calculate("2+3*4") == 14
? calculate("2*3+4*5") == 26
? calculate("10*2*3") == 60
? calculate("1+0*9+2") == 3
-
def calculate(text):
    total = 0
    for term in text.split("+"):
        product = 1
        for factor in term.split("*"):
            product *= int(factor)
        total += product
    return total
-
def calculate(text):
    if "+" in text:
        left, right = text.split("+", 1)
        return calculate(left) + calculate(right)
    if "*" in text:
        left, right = text.split("*", 1)
        return calculate(left) * calculate(right)
    return int(text)
-
def calculate(text):
    total, product, number = 0, 1, 0
    for c in text + "+":
        if c.isdigit():
            number = number * 10 + int(c)
            continue
        product *= number
        number = 0
        if c == "+":
            total += product
            product = 1
    return total

@ compare-versions 2
Write a function `compare_versions(a, b)` that compares version texts such as "1.10" part by part as numbers and
returns -1, 0 or 1 when `a` is older than, equal to or newer than `b`; missing parts count as zero.
? compare_versions("1.2", "1.10") == -1
? compare_versions("2", "1.9.9") == 1
? compare_versions("1.0", "1") == 0
? compare_versions("1.0.1", "1") == 1
? compare_versions("0.1", "0.1.0.1") == -1
? compare_versions("3.4", "3.4") == 0
-
def compare_versions(a, b):
    first = [int(part) for part in a.split(".")]
    second = [int(part) for part in b.split(".")]
    while len(first) < len(second):
        first.append(0)
    while len(second) < len(first):
        second.append(0)
    return (first > second) - (first < second)
-
from itertools import zip_longest

def compare_versions(a, b):
    for x, y in zip_longest(a.split("."), b.split("."), fillvalue="0"):
        if int(x) != int(y):
            return -1 if int(x) < int(y) else 1
    return 0
-
def compare_versions(a, b):
    if not a and not b:
        return 0
    x, _, a = a.partition(".")
    y, _, b = b.partition(".")
    gap = int(x or 0) - int(y or 0)
    if gap == 0:
        return compare_versions(a, b)
    return 1 if gap > 0 else -1

@ parse-query 1
Write a function `parse_query(text)` that reads a text like "a=1&b=2&a=3" into a dictionary from each name to the list
of its values, in order; a part without "=" has the value "".
? parse_query("") == {}
? parse_query("a=1") == {"a": ["1"]}
? parse_query("a=1&b=2&a=3") == {"a": ["1", "3"], "b": ["2"]}
? parse_query("x&y=") == {"x": [""], "y": [""]}
? parse_query("k=a=b") == {"k": ["a=b"]}
-
def parse_query(text):
    result = {}
    for part in text.split("&"):
        if part:
            name, _, value = part.partition("=")
            result.setdefault(name, []).append(value)
    return result
-
def parse_query(text):
    if not text:
        return {}
    pairs = [(part + "=").split("=", 1) for part in text.split("&")]
    pairs = [(name, value[:-1]) for name, value in pairs]
    return {name: [v for n, v in pairs if n == name] for name, _ in pairs}
-
import re

def parse_query(text):
    result = {}
    for name, value in re.findall("([^&=]+)=?([^&]*)", text):
        result[name] = result.get(name, []) + [value]
    return result

@ camel-to-snake 1
Write a function `to_snake(name)` that turns a name like "maxItemSize" into "max_item_size": every upper-case letter
becomes lower case, with an underscore before it unless it is the first character.
? to_snake("") == ""
? to_snake("maxItemSize") == "max_item_size"
? to_snake("plain") == "plain"
? to_snake("Title") == "title"
? to_snake("aB2C") == "a_b2_c"
-
def to_snake(name):
    result = ""
    for i, c in enumerate(name):
        if c.isupper() and i > 0:
            result += "_"
        result += c.lower()
    return result
-
import re

def to_snake(name):
    return re.sub("(?<!^)([A-Z])", r"_\1", name).lower()
-
def to_snake(name):
    parts = ["_" + c.lower() if c.isupper() else c for c in name]
    return "".join(parts).removeprefix("_")

@ valid-address 2
Write a function `is_ipv4(text)` that tells whether `text` consists of four decimal numbers from 0 to 255 joined by
dots, none with a superfluous leading zero.
? is_ipv4("192.168.0.1") == True
? is_ipv4("0.0.0.0") == True
? is_ipv4("255.255.255.255") == True
? is_ipv4("256.1.1.1") == False
? is_ipv4("1.2.3") == False
? is_ipv4("1.2.3.04") == False
? is_ipv4("1.2.3.4.5") == False
? is_ipv4("a.1.2.") == False
-
def is_ipv4(text):
    parts = text.split(".")
    if len(parts) != 4:
        return False
    for part in parts:
        if not part.isdigit() or int(part) > 255 or str(int(part)) != part:
            return False
    return True
-
def is_ipv4(text):
    allowed = {str(n) for n in range(256)}
    parts = text.split(".")
    return len(parts) == 4 and allowed.issuperset(parts)
-
import re

def is_ipv4(text):
    byte = "(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
    return re.fullmatch("[.]".join([byte] * 4), text) is not None

@ luhn-check 2
Write a function `luhn_ok(number)` that checks a text of digits: counted from the right, every second digit is doubled
(9 is subtracted from results above 9), and the sum of all digits must be divisible by ten.
? luhn_ok("0") == True
? luhn_ok("18") == True
? luhn_ok("79927398713") == True
? luhn_ok("79927398710") == False
? luhn_ok("59") == True
? luhn_ok("27") == False
? luhn_ok("91") == True
-
def luhn_ok(number):
    total = 0
    for i, c in enumerate(reversed(number)):
        digit = int(c)
        if i % 2 == 1:
            digit *= 2
            if digit > 9:
                digit -= 9
        total += digit
    return total % 10 == 0
-
def luhn_ok(number):
    doubled = [0, 2, 4, 6, 8, 1, 3, 5, 7, 9]
    plain = sum(int(c) for c in number[::-2])
    changed = sum(doubled[int(c)] for c in number[-2::-2])
    return (plain + changed) % 10 == 0
-
def luhn_ok(number):
    total = 0
    double = False
    for c in number[::-1]:
        tens, ones = divmod(int(c) * (2 if double else 1), 10)
        total += tens + ones
        double = not double
    return str(total).endswith("0")

@ sum-numbers-in-text 1
Write a function `sum_numbers(text)` that adds up all the non-negative integers written in `text`; neighbouring digits
belong to one number.
? sum_numbers("") == 0
? sum_numbers("a1b22c") == 23
? sum_numbers("100") == 100
? sum_numbers("x") == 0
? sum_numbers("3-4") == 7
? sum_numbers("07 and 10") == 17
-
def sum_numbers(text):
    total = 0
    current = 0
    for c in text:
        if c.isdigit():
            current = current * 10 + int(c)
        else:
            total += current
            current = 0
    return total + current
-
import re

def sum_numbers(text):
    return sum(int(number) for number in re.findall("[0-9]+", text))
-
def sum_numbers(text):
    spaced = "".join(c if c.isdigit() else " " for c in text)
    return sum(map(int, spaced.split()))

@ expand-brackets 3
Write a function `expand(text)` that expands repetitions written as a number followed by a bracket, so "2[ab]c"
becomes "ababc" and "2[a3[b]]" becomes "abbbabbb". All other characters are letters.
? expand("") == ""
? expand("abc") == "abc"
? expand("2[ab]c") == "ababc"
? expand("2[a3[b]]") == "abbbabbb"
? expand("10[x]") == "xxxxxxxxxx"
? expand("1[a]2[b]z") == "abbz"
-
def expand(text):
    stack = [""]
    counts = []
    digits = ""
    for c in text:
        if c.isdigit():
            digits += c
        elif c == "[":
            counts.append(int(digits))
            stack.append("")
            digits = ""
        elif c == "]":
            inner = stack.pop()
            stack[-1] += inner * counts.pop()
        else:
            stack[-1] += c
    return stack[0]
-
import re

def expand(text):
    found = re.search(r"([0-9]+)\[([a-z]*)\]", text)
    if not found:
        return text
    middle = found.group(2) * int(found.group(1))
    return expand(text[:found.start()] + middle + text[found.end():])
-
def expand(text):
    while "]" in text:
        close = text.index("]")
        start = text.rindex("[", 0, close)
        first = start
        while first > 0 and text[first - 1].isdigit():
            first -= 1
        middle = text[start + 1:close] * int(text[first:start])
        text = text[:first] + middle + text[close + 1:]
    return text

@ parse-table 1
Write a function `read_table(text)` that gets lines of comma-separated fields, the first line holding the column
names, and returns a list with one dictionary per further line. An empty text gives an empty list.
? read_table("") == []
? read_table("a,b") == []
? read_table("a,b\n1,2") == [{"a": "1", "b": "2"}]
? read_table("n\nx\ny") == [{"n": "x"}, {"n": "y"}]
? read_table("k,v\n,7") == [{"k": "", "v": "7"}]
-
def read_table(text):
    rows = [line.split(",") for line in text.split("\n")]
    return [dict(zip(rows[0], row)) for row in rows[1:]]
-
def read_table(text):
    header = None
    result = []
    for line in text.splitlines():
        fields = line.split(",")
        if header is None:
            header = fields
        else:
            result.append({name: fields[i] for i, name in enumerate(header)})
    return result
-
def read_table(text):
    first, _, rest = text.partition("\n")
    table = []
    for line in rest.splitlines():
        record = {}
        for name, field in zip(first.split(","), line.split(",")):
            record[name] = field
        table.append(record)
    return table

@ nesting-depth 1
Write a function `max_depth(text)` that returns how deeply the round brackets of a well-formed text are nested.
? max_depth("") == 0
? max_depth("abc") == 0
? max_depth("(a)(b)") == 1
? max_depth("(a(b))c") == 2
? max_depth("((()))()") == 3
-
def max_depth(text):
    depth = best = 0
    for c in text:
        if c == "(":
            depth += 1
            best = max(best, depth)
        elif c == ")":
            depth -= 1
    return best
-
def max_depth(text):
    return max((text[:i].count("(") - text[:i].count(")") for i in range(len(text))), default=0)
-
def max_depth(text):
    rest = "".join(c for c in text if c in "()")
    depth = 0
    while rest:
        rest = rest[1:-1].replace(")(", "") if depth else rest.replace(")(", "")
        while ")(" in rest:
            rest = rest.replace(")(", "")
        depth += 1
        if rest == "()":
            return depth
    return depth
"""
