"""Problems about whole numbers."""

PROBLEMS = r"""
@ greatest-common-divisor 1
Write a function `gcd(a, b)` that returns the greatest common divisor of two non-negative integers; gcd(0, 0) is 0.
? gcd(12, 18) == 6
? gcd(7, 13) == 1
? gcd(0, 5) == 5
? gcd(5, 0) == 5
? gcd(0, 0) == 0
? gcd(100, 75) == 25
? gcd(8, 8) == 8
-
def gcd(a, b):
    while b:
        a, b = b, a % b
    return a
-
def gcd(a, b):
    if b == 0:
        return a
    return gcd(b, a % b)
-
def gcd(a, b):
    if a == 0 or b == 0:
        return a + b
    for d in range(min(a, b), 0, -1):
        if a % d == 0 and b % d == 0:
            return d

@ least-common-multiple 1
Write a function `lcm(numbers)` that returns the least common multiple of a list of positive integers; the empty list
gives 1.
? lcm([]) == 1
? lcm([7]) == 7
? lcm([4, 6]) == 12
? lcm([2, 3, 5]) == 30
? lcm([6, 6, 3]) == 6
? lcm([8, 12, 18]) == 72
-
def lcm(numbers):
    result = 1
    for n in numbers:
        a, b = result, n
        while b:
            a, b = b, a % b
        result = result * n // a
    return result
-
def lcm(numbers):
    result = 1
    while any(result % n for n in numbers):
        result += 1
    return result
-
def lcm(numbers):
    if not numbers:
        return 1
    rest = lcm(numbers[1:])
    multiple = rest
    while multiple % numbers[0] != 0:
        multiple += rest
    return multiple

@ prime-test 1
Write a function `is_prime(n)` that tells whether the integer `n` is a prime number.
? is_prime(1) == False
? is_prime(2) == True
? is_prime(9) == False
? is_prime(13) == True
? is_prime(0) == False
? is_prime(-3) == False
? is_prime(49) == False
? is_prime(4) == False
-
def is_prime(n):
    if n < 2:
        return False
    d = 2
    while d * d <= n:
        if n % d == 0:
            return False
        d += 1
    return True
-
def is_prime(n):
    return n > 1 and all(n % d for d in range(2, n))
-
def is_prime(n):
    divisors = [d for d in range(1, n + 1) if n % d == 0]
    return len(divisors) == 2

@ primes-below 2
Write a function `primes_below(limit)` that returns the list of all prime numbers smaller than `limit`.
? primes_below(0) == []
? primes_below(2) == []
? primes_below(3) == [2]
? primes_below(12) == [2, 3, 5, 7, 11]
? primes_below(26) == [2, 3, 5, 7, 11, 13, 17, 19, 23]
? primes_below(11) == [2, 3, 5, 7]
-
def primes_below(limit):
    primes = []
    for n in range(2, limit):
        if all(n % p for p in primes):
            primes.append(n)
    return primes
-
def primes_below(limit):
    marked = [True] * max(limit, 2)
    marked[0] = marked[1] = False
    for n in range(2, limit):
        if marked[n]:
            for multiple in range(n * n, limit, n):
                marked[multiple] = False
    return [n for n in range(limit) if marked[n]]
-
def primes_below(limit):
    candidates = set(range(2, limit))
    for d in range(2, limit):
        candidates -= set(range(2 * d, limit, d))
    return sorted(candidates)

@ divisors-list 1
Write a function `divisors(n)` that returns all positive divisors of the positive integer `n` in increasing order.
? divisors(1) == [1]
? divisors(7) == [1, 7]
? divisors(12) == [1, 2, 3, 4, 6, 12]
? divisors(16) == [1, 2, 4, 8, 16]
? divisors(30) == [1, 2, 3, 5, 6, 10, 15, 30]
-
def divisors(n):
    return [d for d in range(1, n + 1) if n % d == 0]
-
def divisors(n):
    small, large = [], []
    d = 1
    while d * d <= n:
        if n % d == 0:
            small.append(d)
            if d != n // d:
                large.insert(0, n // d)
        d += 1
    return small + large
-
def divisors(n):
    found = set()
    for a in range(1, n + 1):
        quotient, rest = divmod(n, a)
        if rest == 0:
            found |= {a, quotient}
    return sorted(found)

@ digit-sum 1
Write a function `digit_sum(n)` that returns the sum of the decimal digits of the integer `n`, ignoring its sign.
? digit_sum(0) == 0
? digit_sum(7) == 7
? digit_sum(109) == 10
? digit_sum(-45) == 9
? digit_sum(9999) == 36
-
def digit_sum(n):
    return sum(int(c) for c in str(abs(n)))
-
def digit_sum(n):
    n = abs(n)
    total = 0
    while n > 0:
        total += n % 10
        n //= 10
    return total
-
def digit_sum(n):
    if n < 0:
        return digit_sum(-n)
    if n < 10:
        return n
    head, last = divmod(n, 10)
    return digit_sum(head) + last

@ digital-root 2
Write a function `digital_root(n)` that adds up the decimal digits of the non-negative integer `n` again and again
until a single digit is left, and returns that digit.
? digital_root(0) == 0
? digital_root(9) == 9
? digital_root(10) == 1
? digital_root(38) == 2
? digital_root(99999) == 9
? digital_root(493193) == 2
-
def digital_root(n):
    while n > 9:
        n = sum(int(c) for c in str(n))
    return n
-
def digital_root(n):
    if n == 0:
        return 0
    return 1 + (n - 1) % 9
-
def digital_root(n):
    total = 0
    while n:
        n, digit = divmod(n, 10)
        total += digit
    return total if total < 10 else digital_root(total)

@ reverse-digits 1
Write a function `reverse_digits(n)` that returns the integer whose decimal digits are those of `n` in reverse order,
with the same sign.
? reverse_digits(0) == 0
? reverse_digits(123) == 321
? reverse_digits(-45) == -54
? reverse_digits(120) == 21
? reverse_digits(-10) == -1
? reverse_digits(7) == 7
-
def reverse_digits(n):
    sign = -1 if n < 0 else 1
    return sign * int(str(abs(n))[::-1])
-
def reverse_digits(n):
    if n < 0:
        return -reverse_digits(-n)
    result = 0
    while n > 0:
        result = result * 10 + n % 10
        n //= 10
    return result
-
def reverse_digits(n):
    value = sum(int(c) * 10 ** i for i, c in enumerate(str(abs(n))))
    return value if n >= 0 else -value

@ fibonacci-number 1
Write a function `fibonacci(n)` that returns the n-th number of the sequence 0, 1, 1, 2, 3, 5, ... where
fibonacci(0) is 0.
? fibonacci(0) == 0
? fibonacci(1) == 1
? fibonacci(2) == 1
? fibonacci(7) == 13
? fibonacci(12) == 144
-
def fibonacci(n):
    a, b = 0, 1
    for _ in range(n):
        a, b = b, a + b
    return a
-
def fibonacci(n):
    if n < 2:
        return n
    return fibonacci(n - 1) + fibonacci(n - 2)
-
def fibonacci(n):
    numbers = [0, 1]
    while len(numbers) <= n:
        numbers.append(numbers[-1] + numbers[-2])
    return numbers[n]

@ collatz-steps 2
Write a function `collatz_steps(n)` that counts the steps from the positive integer `n` to 1, where each step halves
an even number and replaces an odd number m by 3 * m + 1.
? collatz_steps(1) == 0
? collatz_steps(2) == 1
? collatz_steps(3) == 7
? collatz_steps(8) == 3
? collatz_steps(27) == 111
-
def collatz_steps(n):
    steps = 0
    while n != 1:
        n = n // 2 if n % 2 == 0 else 3 * n + 1
        steps += 1
    return steps
-
def collatz_steps(n):
    if n == 1:
        return 0
    if n % 2:
        return 1 + collatz_steps(3 * n + 1)
    return 1 + collatz_steps(n // 2)
-
def collatz_steps(n):
    chain = [n]
    while chain[-1] > 1:
        last = chain[-1]
        chain.append(last * 3 + 1 if last & 1 else last >> 1)
    return len(chain) - 1

@ perfect-number 1
Write a function `kind(n)` that compares the positive integer `n` with the sum of its divisors smaller than itself and
returns "perfect" if they are equal, "abundant" if the sum is larger and "deficient" otherwise.
? kind(6) == "perfect"
? kind(28) == "perfect"
? kind(12) == "abundant"
? kind(8) == "deficient"
? kind(1) == "deficient"
? kind(20) == "abundant"
? kind(3) == "deficient"
-
def kind(n):
    total = sum(d for d in range(1, n) if n % d == 0)
    if total == n:
        return "perfect"
    return "abundant" if total > n else "deficient"
-
def kind(n):
    total = 0
    for d in range(1, n // 2 + 1):
        if n % d == 0:
            total += d
    if total < n:
        return "deficient"
    if total > n:
        return "abundant"
    return "perfect"
-
def kind(n):
    rest = 2 * n
    for d in range(1, n + 1):
        if n % d == 0:
            rest -= d
    return {0: "perfect"}.get(rest, "deficient" if rest > 0 else "abundant")

@ clamp-value 1
Write a function `clamp(value, low, high)` that returns `value` limited to the range from `low` to `high`, where
low <= high.
? clamp(5, 0, 10) == 5
? clamp(-1, 0, 10) == 0
? clamp(11, 0, 10) == 10
? clamp(0, 0, 0) == 0
? clamp(7, 8, 8) == 8
? clamp(-5, -9, -6) == -6
-
def clamp(value, low, high):
    return max(low, min(value, high))
-
def clamp(value, low, high):
    if value < low:
        return low
    if value > high:
        return high
    return value
-
def clamp(value, low, high):
    return sorted([low, value, high])[1]

@ round-to-multiple 2
Write a function `round_to(n, step)` that returns the multiple of the positive integer `step` nearest to the
non-negative integer `n`; halfway cases go up.
? round_to(0, 5) == 0
? round_to(7, 5) == 5
? round_to(8, 5) == 10
? round_to(6, 4) == 8
? round_to(5, 4) == 4
? round_to(9, 1) == 9
? round_to(15, 10) == 20
-
def round_to(n, step):
    rest = n % step
    if rest * 2 >= step:
        return n - rest + step
    return n - rest
-
def round_to(n, step):
    return (2 * n + step) // (2 * step) * step
-
def round_to(n, step):
    below = n // step * step
    above = below + step
    return below if n - below < above - n else above

@ integer-root 2
Write a function `int_sqrt(n)` that returns the largest integer whose square is not larger than the non-negative
integer `n`.
? int_sqrt(0) == 0
? int_sqrt(1) == 1
? int_sqrt(3) == 1
? int_sqrt(4) == 2
? int_sqrt(24) == 4
? int_sqrt(25) == 5
? int_sqrt(120) == 10
-
def int_sqrt(n):
    root = 0
    while (root + 1) * (root + 1) <= n:
        root += 1
    return root
-
def int_sqrt(n):
    low, high = 0, n + 1
    while high - low > 1:
        mid = (low + high) // 2
        if mid * mid <= n:
            low = mid
        else:
            high = mid
    return low
-
def int_sqrt(n):
    odd = 1
    count = 0
    while n >= odd:
        n -= odd
        odd += 2
        count += 1
    return count

@ power-modulo 2
Write a function `power_mod(base, exponent, modulus)` that returns base ** exponent modulo `modulus` for non-negative
integers and a positive modulus.
? power_mod(2, 10, 1000) == 24
? power_mod(3, 0, 5) == 1
? power_mod(3, 4, 1) == 0
? power_mod(7, 3, 10) == 3
? power_mod(0, 0, 7) == 1
? power_mod(10, 5, 6) == 4
-
def power_mod(base, exponent, modulus):
    result = 1 % modulus
    for _ in range(exponent):
        result = result * base % modulus
    return result
-
def power_mod(base, exponent, modulus):
    result = 1
    while exponent > 0:
        if exponent & 1:
            result = result * base % modulus
        base = base * base % modulus
        exponent >>= 1
    return result % modulus
-
def power_mod(base, exponent, modulus):
    if exponent == 0:
        return 1 % modulus
    half = power_mod(base, exponent // 2, modulus)
    square = half * half
    return square * base % modulus if exponent % 2 else square % modulus

@ to-base 2
Write a function `to_base(n, base)` that returns the non-negative integer `n` written in `base` (2 to 16) with the
digits 0-9 and a-f.
? to_base(0, 2) == "0"
? to_base(10, 2) == "1010"
? to_base(255, 16) == "ff"
? to_base(7, 8) == "7"
? to_base(8, 8) == "10"
? to_base(100, 7) == "202"
? to_base(11, 12) == "b"
-
def to_base(n, base):
    digits = "0123456789abcdef"
    if n < base:
        return digits[n]
    return to_base(n // base, base) + digits[n % base]
-
def to_base(n, base):
    if n == 0:
        return "0"
    result = ""
    while n > 0:
        n, rest = divmod(n, base)
        result = "0123456789abcdef"[rest] + result
    return result
-
def to_base(n, base):
    power = 1
    while power * base <= n:
        power *= base
    result = []
    while power:
        result.append("0123456789abcdef"[n // power])
        n %= power
        power //= base
    return "".join(result)

@ from-base 2
Write a function `from_base(text, base)` that returns the integer that `text` spells in `base` (2 to 16), with the
digits 0-9 and a-f.
? from_base("0", 2) == 0
? from_base("1010", 2) == 10
? from_base("ff", 16) == 255
? from_base("202", 7) == 100
? from_base("007", 8) == 7
? from_base("b1", 12) == 133
-
def from_base(text, base):
    value = 0
    for c in text:
        value = value * base + "0123456789abcdef".index(c)
    return value
-
def from_base(text, base):
    digits = "0123456789abcdef"
    return sum(digits.index(c) * base ** i for i, c in enumerate(reversed(text)))
-
def from_base(text, base):
    if not text:
        return 0
    last = text[-1]
    digit = int(last) if last.isdigit() else ord(last) - ord("a") + 10
    return from_base(text[:-1], base) * base + digit

@ factorial-zeros 2
Write a function `trailing_zeros(n)` that returns how many zeros the decimal form of n! (the factorial of the
non-negative integer `n`) ends with.
? trailing_zeros(0) == 0
? trailing_zeros(4) == 0
? trailing_zeros(5) == 1
? trailing_zeros(25) == 6
? trailing_zeros(100) == 24
? trailing_zeros(30) == 7
-
def trailing_zeros(n):
    count = 0
    power = 5
    while power <= n:
        count += n // power
        power *= 5
    return count
-
def trailing_zeros(n):
    product = 1
    for k in range(2, n + 1):
        product *= k
    text = str(product)
    return len(text) - len(text.rstrip("0"))
-
def trailing_zeros(n):
    if n < 5:
        return 0
    return n // 5 + trailing_zeros(n // 5)

@ prime-factors 2
Write a function `prime_factors(n)` that returns the prime factors of the positive integer `n` in increasing order,
repeated as often as they divide it.
? prime_factors(1) == []
? prime_factors(2) == [2]
? prime_factors(12) == [2, 2, 3]
? prime_factors(49) == [7, 7]
? prime_factors(97) == [97]
? prime_factors(90) == [2, 3, 3, 5]
-
def prime_factors(n):
    factors = []
    d = 2
    while n > 1:
        while n % d == 0:
            factors.append(d)
            n //= d
        d += 1
    return factors
-
def prime_factors(n):
    for d in range(2, n + 1):
        if n % d == 0:
            return [d] + prime_factors(n // d)
    return []
-
def prime_factors(n):
    factors = []
    d = 2
    while d * d <= n:
        if n % d:
            d += 1
        else:
            factors.append(d)
            n //= d
    if n > 1:
        factors.append(n)
    return factors

@ to-roman 2
Write a function `to_roman(n)` that returns the integer `n` (1 to 3999) as a Roman numeral.
? to_roman(1) == "I"
? to_roman(4) == "IV"
? to_roman(9) == "IX"
? to_roman(58) == "LVIII"
? to_roman(1994) == "MCMXCIV"
? to_roman(3000) == "MMM"
? to_roman(444) == "CDXLIV"
-
def to_roman(n):
    values = [1000, 900, 500, 400, 100, 90, 50, 40, 10, 9, 5, 4, 1]
    names = "M CM D CD C XC L XL X IX V IV I".split()
    result = ""
    for value, name in zip(values, names):
        while n >= value:
            result += name
            n -= value
    return result
-
def to_roman(n):
    ones = ["", "I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX"]
    tens = [r.translate(str.maketrans("IVX", "XLC")) for r in ones]
    hundreds = [r.translate(str.maketrans("IVX", "CDM")) for r in ones]
    return "M" * (n // 1000) + hundreds[n // 100 % 10] + tens[n // 10 % 10] + ones[n % 10]

@ from-roman 2
Write a function `from_roman(text)` that returns the value of a well-formed Roman numeral made of I, V, X, L, C, D
and M.
? from_roman("I") == 1
? from_roman("IV") == 4
? from_roman("XIX") == 19
? from_roman("MCMXCIV") == 1994
? from_roman("LVIII") == 58
? from_roman("CDXLIV") == 444
-
def from_roman(text):
    values = {"I": 1, "V": 5, "X": 10, "L": 50, "C": 100, "D": 500, "M": 1000}
    total = 0
    largest = 0
    for c in reversed(text):
        value = values[c]
        if value < largest:
            total -= value
        else:
            total += value
            largest = value
    return total
-
def from_roman(text):
    pairs = {"IV": 4, "IX": 9, "XL": 40, "XC": 90, "CD": 400, "CM": 900}
    ones = {"I": 1, "V": 5, "X": 10, "L": 50, "C": 100, "D": 500, "M": 1000}
    if not text:
        return 0
    if text[:2] in pairs:
        return pairs[text[:2]] + from_roman(text[2:])
    return ones[text[0]] + from_roman(text[1:])
-
def from_roman(text):
    numbers = [{"I": 1, "V": 5, "X": 10, "L": 50, "C": 100, "D": 500, "M": 1000}[c] for c in text]
    total = sum(numbers)
    for a, b in zip(numbers, numbers[1:]):
        if a < b:
            total -= 2 * a
    return total

@ binomial-coefficient 2
Write a function `choose(n, k)` that returns in how many ways `k` things can be chosen from `n`; it is 0 when `k` is
larger than `n`. Both are non-negative integers.
? choose(0, 0) == 1
? choose(5, 0) == 1
? choose(5, 2) == 10
? choose(5, 5) == 1
? choose(3, 4) == 0
? choose(10, 3) == 120
? choose(4, 1) == 4
-
def choose(n, k):
    if k > n:
        return 0
    result = 1
    for i in range(k):
        result = result * (n - i) // (i + 1)
    return result
-
def choose(n, k):
    if k == 0:
        return 1
    if n == 0:
        return 0
    return choose(n - 1, k - 1) + choose(n - 1, k)
-
def choose(n, k):
    row = [1]
    for _ in range(n):
        row = [1] + [a + b for a, b in zip(row, row[1:])] + [1]
    return row[k] if k <= n else 0

@ armstrong-number 1
Write a function `is_armstrong(n)` that tells whether the non-negative integer `n` equals the sum of its decimal
digits, each raised to the power of the number of digits.
? is_armstrong(0) == True
? is_armstrong(7) == True
? is_armstrong(10) == False
? is_armstrong(153) == True
? is_armstrong(154) == False
? is_armstrong(9474) == True
-
def is_armstrong(n):
    digits = str(n)
    return sum(int(c) ** len(digits) for c in digits) == n
-
def is_armstrong(n):
    size = len(str(n))
    total = 0
    rest = n
    while rest:
        total += (rest % 10) ** size
        rest //= 10
    return total == n
-
def is_armstrong(n):
    digits = [int(c) for c in str(n)]
    for d in digits:
        power = 1
        for _ in digits:
            power *= d
        n -= power
    return n == 0

@ fewest-coins 3
Write a function `fewest_coins(coins, amount)` that returns the smallest number of coins that add up to `amount` when
every value in `coins` may be used any number of times, or -1 if that is impossible.
? fewest_coins([1, 2, 5], 11) == 3
? fewest_coins([2], 3) == -1
? fewest_coins([5], 0) == 0
? fewest_coins([1, 3, 4], 6) == 2
? fewest_coins([], 4) == -1
? fewest_coins([7, 3], 13) == 3
-
def fewest_coins(coins, amount):
    best = [0] + [None] * amount
    for total in range(1, amount + 1):
        for coin in coins:
            if coin <= total and best[total - coin] is not None:
                count = best[total - coin] + 1
                if best[total] is None or count < best[total]:
                    best[total] = count
    return -1 if best[amount] is None else best[amount]
-
def fewest_coins(coins, amount):
    reached = {0}
    count = 0
    while amount not in reached:
        larger = reached | {total + coin for total in reached for coin in coins if total + coin <= amount}
        if larger == reached:
            return -1
        reached = larger
        count += 1
    return count
-
def fewest_coins(coins, amount):
    if amount == 0:
        return 0
    counts = [fewest_coins(coins, amount - coin) for coin in coins if coin <= amount]
    return min((count + 1 for count in counts if count >= 0), default=-1)

@ triangular-number 1
Write a function `is_triangular(n)` that tells whether the positive integer `n` is a sum 1 + 2 + ... + k for some k.
? is_triangular(1) == True
? is_triangular(2) == False
? is_triangular(3) == True
? is_triangular(10) == True
? is_triangular(11) == False
? is_triangular(5) == False
-
def is_triangular(n):
    k = 1
    while n > 0:
        n -= k
        k += 1
    return n == 0
-
def is_triangular(n):
    return any(k * (k + 1) // 2 == n for k in range(1, n + 1))
-
from itertools import accumulate

def is_triangular(n):
    return n in accumulate(range(1, n + 1))

@ happy-number 3
Write a function `is_happy(n)` that replaces the positive integer `n` again and again by the sum of the squares of its
decimal digits and tells whether this ever reaches 1.
? is_happy(1) == True
? is_happy(7) == True
? is_happy(4) == False
? is_happy(19) == True
? is_happy(20) == False
? is_happy(2) == False
? is_happy(100) == True
-
def is_happy(n):
    seen = set()
    while n not in seen:
        seen.add(n)
        n = sum(int(c) ** 2 for c in str(n))
    return n == 1
-
def is_happy(n):
    while n > 6:
        total = 0
        while n:
            n, digit = divmod(n, 10)
            total += digit * digit
        n = total
    return n == 1
-
def is_happy(n):
    def step(m):
        return sum(int(c) * int(c) for c in str(m))
    slow, fast = n, step(n)
    while slow != fast:
        slow = step(slow)
        fast = step(step(fast))
    return slow == 1
"""
