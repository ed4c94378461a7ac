"""Problems about matrices and grids, given as lists of rows."""

PROBLEMS = r"""
@ transpose-matrix 1
Write a function `transpose(matrix)` that swaps the rows and the columns of a matrix.
? transpose([]) == []
? transpose([[1, 2], [3, 4]]) == [[1, 3], [2, 4]]
? transpose([[1, 2, 3]]) == [[1], [2], [3]]
? transpose([[5], [6]]) == [[5, 6]]
-
def transpose(matrix):
    return [list(column) for column in zip(*matrix)]
-
def transpose(matrix):
    if not matrix:
        return []
    return [[row[j] for row in matrix] for j in range(len(matrix[0]))]
-
def transpose(matrix):
    result = []
    for i, row in enumerate(matrix):
        for j, value in enumerate(row):
            if i == 0:
                result.append([])
            result[j].append(value)
    return result

@ rotate-matrix 2
Write a function `rotate(matrix)` that returns the matrix turned by 90 degrees clockwise.
? rotate([]) == []
? rotate([[1]]) == [[1]]
? rotate([[1, 2], [3, 4]]) == [[3, 1], [4, 2]]
? rotate([[1, 2, 3]]) == [[1], [2], [3]]
? rotate([[1], [2], [3]]) == [[3, 2, 1]]
-
def rotate(matrix):
    return [list(row) for row in zip(*matrix[::-1])]
-
def rotate(matrix):
    result = []
    width = len(matrix[0]) if matrix else 0
    for j in range(width):
        result.append([matrix[i][j] for i in range(len(matrix) - 1, -1, -1)])
    return result
-
def rotate(matrix):
    columns = list(zip(*matrix))
    return [list(reversed(column)) for column in columns]

@ matrix-product 2
Write a function `multiply(a, b)` that returns the product of two matrices of fitting, non-zero sizes.
? multiply([[2]], [[3]]) == [[6]]
? multiply([[1, 2], [3, 4]], [[1, 0], [0, 1]]) == [[1, 2], [3, 4]]
? multiply([[1, 2]], [[3], [4]]) == [[11]]
? multiply([[1], [2]], [[3, 4]]) == [[3, 4], [6, 8]]
? multiply([[1, 2], [3, 4]], [[5, 6], [7, 8]]) == [[19, 22], [43, 50]]
-
def multiply(a, b):
    columns = list(zip(*b))
    return [[sum(x * y for x, y in zip(row, column)) for column in columns] for row in a]
-
def multiply(a, b):
    result = [[0] * len(b[0]) for _ in a]
    for i in range(len(a)):
        for j in range(len(b[0])):
            for k in range(len(b)):
                result[i][j] += a[i][k] * b[k][j]
    return result
-
def multiply(a, b):
    result = []
    for row in a:
        total = [0] * len(b[0])
        for factor, other in zip(row, b):
            total = [t + factor * value for t, value in zip(total, other)]
        result.append(total)
    return result

@ diagonal-difference 1
Write a function `diagonal_difference(matrix)` that returns the absolute difference between the sums of the two
diagonals of a square matrix.
? diagonal_difference([]) == 0
? diagonal_difference([[7]]) == 0
? diagonal_difference([[1, 2], [3, 5]]) == 1
? diagonal_difference([[1, 2, 9], [4, 5, 6], [3, 8, 1]]) == 10
? diagonal_difference([[9, 0], [0, 1]]) == 10
-
def diagonal_difference(matrix):
    n = len(matrix)
    first = sum(matrix[i][i] for i in range(n))
    second = sum(matrix[i][n - 1 - i] for i in range(n))
    return abs(first - second)
-
def diagonal_difference(matrix):
    total = 0
    for i, row in enumerate(matrix):
        total += row[i] - row[-1 - i]
    return max(total, -total)
-
def diagonal_difference(matrix):
    n = len(matrix)
    total = 0
    for i in range(n):
        for j in range(n):
            if i == j:
                total += matrix[i][j]
            if i + j == n - 1:
                total -= matrix[i][j]
    return abs(total)

@ spiral-order 3
Write a function `spiral(matrix)` that returns the values of a matrix in clockwise spiral order, starting at the top
left corner.
? spiral([]) == []
? spiral([[1]]) == [1]
? spiral([[1, 2], [4, 3]]) == [1, 2, 3, 4]
? spiral([[1, 2, 3], [8, 9, 4], [7, 6, 5]]) == [1, 2, 3, 4, 5, 6, 7, 8, 9]
? spiral([[1, 2, 3]]) == [1, 2, 3]
? spiral([[1], [2], [3]]) == [1, 2, 3]
? spiral([[1, 2], [6, 3], [5, 4]]) == [1, 2, 3, 4, 5, 6]
-
def spiral(matrix):
    result = []
    rest = list(matrix)
    while rest:
        result.extend(rest[0])
        rest = list(zip(*rest[1:]))[::-1]
    return result
-
def spiral(matrix):
    cells = {(i, j): value for i, row in enumerate(matrix) for j, value in enumerate(row)}
    i, j, di, dj = 0, -1, 0, 1
    result = []
    while cells:
        if (i + di, j + dj) not in cells:
            di, dj = dj, -di
        i, j = i + di, j + dj
        result.append(cells.pop((i, j)))
    return result
-
def spiral(matrix):
    if not matrix or not matrix[0]:
        return []
    top = list(matrix[0])
    right = [row[-1] for row in matrix[1:]]
    bottom = matrix[-1][-2::-1] if len(matrix) > 1 else []
    left = [row[0] for row in matrix[-2:0:-1]] if len(matrix[0]) > 1 else []
    return top + right + bottom + left + spiral([row[1:-1] for row in matrix[1:-1]])

@ symmetric-matrix 1
Write a function `is_symmetric(matrix)` that tells whether a square matrix is equal to its own transpose.
? is_symmetric([]) == True
? is_symmetric([[3]]) == True
? is_symmetric([[1, 2], [2, 1]]) == True
? is_symmetric([[1, 2], [3, 1]]) == False
? is_symmetric([[1, 2, 3], [2, 5, 6], [3, 7, 9]]) == False
? is_symmetric([[1, 2, 3], [2, 5, 6], [4, 6, 9]]) == False
-
def is_symmetric(matrix):
    for i in range(len(matrix)):
        for j in range(i):
            if matrix[i][j] != matrix[j][i]:
                return False
    return True
-
def is_symmetric(matrix):
    return all(list(column) == row for column, row in zip(zip(*matrix), matrix))
-
def is_symmetric(matrix):
    return [list(column) for column in zip(*matrix)] == matrix

@ magic-square 2
Write a function `is_magic(square)` that tells whether all rows, all columns and both diagonals of a non-empty square
matrix have the same sum.
? is_magic([[5]]) == True
? is_magic([[2, 7, 6], [9, 5, 1], [4, 3, 8]]) == True
? is_magic([[1, 2], [3, 4]]) == False
? is_magic([[0, 2, 1], [1, 0, 2], [2, 1, 0]]) == False
? is_magic([[2, 6, 7], [9, 1, 5], [4, 8, 3]]) == False
? is_magic([[1, 1], [2, 2]]) == False
? is_magic([[1, 2], [1, 2]]) == False
? is_magic([[1, 2, 0], [2, 0, 1], [0, 1, 2]]) == False
-
def is_magic(square):
    n = len(square)
    sums = {sum(row) for row in square} | {sum(column) for column in zip(*square)}
    sums.add(sum(square[i][i] for i in range(n)))
    sums.add(sum(square[i][n - 1 - i] for i in range(n)))
    return len(sums) == 1
-
def is_magic(square):
    n = len(square)
    lines = [row for row in square] + list(zip(*square))
    lines.append([square[i][i] for i in range(n)])
    lines.append([square[i][-1 - i] for i in range(n)])
    return all(sum(line) == sum(square[0]) for line in lines)
-
def is_magic(square):
    total = sum(square[0])
    down = up = 0
    for i, row in enumerate(square):
        if sum(row) != total or sum(r[i] for r in square) != total:
            return False
        down += row[i]
        up += row[-1 - i]
    return down == up == total

@ border-sum 1
Write a function `border_sum(grid)` that returns the sum of the values on the border of a matrix, each counted once.
? border_sum([]) == 0
? border_sum([[4]]) == 4
? border_sum([[1, 2], [3, 4]]) == 10
? border_sum([[1, 1, 1], [1, 9, 1], [1, 1, 1]]) == 8
? border_sum([[1, 2, 3]]) == 6
? border_sum([[1], [2], [5]]) == 8
-
def border_sum(grid):
    total = 0
    for i, row in enumerate(grid):
        for j, value in enumerate(row):
            if i == 0 or j == 0 or i == len(grid) - 1 or j == len(row) - 1:
                total += value
    return total
-
def border_sum(grid):
    everything = sum(sum(row) for row in grid)
    inside = sum(sum(row[1:-1]) for row in grid[1:-1])
    return everything - inside
-
def border_sum(grid):
    if len(grid) < 3:
        return sum(map(sum, grid))
    total = sum(grid[0]) + sum(grid[-1])
    for row in grid[1:-1]:
        total += sum(row) if len(row) < 3 else row[0] + row[-1]
    return total

@ island-count 3
Write a function `islands(grid)` that counts the islands in a grid of zeros and ones; an island is a largest set of
ones connected up, down, left and right.
? islands([]) == 0
? islands([[0]]) == 0
? islands([[1]]) == 1
? islands([[1, 0], [0, 1]]) == 2
? islands([[1, 1, 0], [0, 1, 0], [1, 0, 1]]) == 3
? islands([[1, 0, 1], [1, 1, 1]]) == 1
-
def islands(grid):
    land = {(i, j) for i, row in enumerate(grid) for j, cell in enumerate(row) if cell}
    count = 0
    while land:
        count += 1
        todo = [land.pop()]
        while todo:
            i, j = todo.pop()
            for near in [(i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)]:
                if near in land:
                    land.remove(near)
                    todo.append(near)
    return count
-
def islands(grid):
    rest = [list(row) for row in grid]
    def sink(i, j):
        if not (0 <= i < len(rest) and 0 <= j < len(rest[i])) or not rest[i][j]:
            return 0
        rest[i][j] = 0
        for di, dj in [(0, 1), (1, 0), (0, -1), (-1, 0)]:
            sink(i + di, j + dj)
        return 1
    return sum(sink(i, j) for i in range(len(rest)) for j in range(len(rest[i])))

@ neighbour-counts 2
Write a function `neighbour_counts(grid)` that returns a grid of the same size which says for every cell how many of
its up to eight neighbours are 1; the grid holds zeros and ones.
? neighbour_counts([[1]]) == [[0]]
? neighbour_counts([[1, 1]]) == [[1, 1]]
? neighbour_counts([[1, 0], [0, 1]]) == [[1, 2], [2, 1]]
? neighbour_counts([[1, 1, 1], [1, 1, 1], [1, 1, 1]]) == [[3, 5, 3], [5, 8, 5], [3, 5, 3]]
? neighbour_counts([[0, 1], [0, 0], [0, 0]]) == [[1, 0], [1, 1], [0, 0]]
? neighbour_counts([]) == []
-
def neighbour_counts(grid):
    result = []
    for i, row in enumerate(grid):
        counts = []
        for j in range(len(row)):
            block = [r[max(0, j - 1):j + 2] for r in grid[max(0, i - 1):i + 2]]
            counts.append(sum(map(sum, block)) - row[j])
        result.append(counts)
    return result
-
def neighbour_counts(grid):
    result = [[0] * len(row) for row in grid]
    ones = [(i, j) for i, row in enumerate(grid) for j, cell in enumerate(row) if cell]
    for i, row in enumerate(result):
        for j in range(len(row)):
            row[j] = sum(max(abs(i - a), abs(j - b)) == 1 for a, b in ones)
    return result
-
def neighbour_counts(grid):
    ones = {(i, j) for i, row in enumerate(grid) for j, cell in enumerate(row) if cell}
    def count(i, j):
        block = {(i + a, j + b) for a in (-1, 0, 1) for b in (-1, 0, 1)}
        return len((block - {(i, j)}) & ones)
    return [[count(i, j) for j in range(len(row))] for i, row in enumerate(grid)]

@ saddle-values 2
Write a function `saddle_values(matrix)` that returns the sorted values of all cells that are the smallest of their
row and the largest of their column (ties allowed).
? saddle_values([]) == []
? saddle_values([[5]]) == [5]
? saddle_values([[1, 2], [3, 4]]) == [3]
? saddle_values([[4, 1], [2, 3]]) == []
? saddle_values([[2, 2], [2, 2]]) == [2, 2, 2, 2]
? saddle_values([[9, 7, 8], [3, 2, 6], [1, 5, 4]]) == [7]
-
def saddle_values(matrix):
    columns = list(zip(*matrix))
    found = []
    for row in matrix:
        for j, value in enumerate(row):
            if value == min(row) and value == max(columns[j]):
                found.append(value)
    return sorted(found)
-
def saddle_values(matrix):
    lows = [min(row) for row in matrix]
    highs = [max(column) for column in zip(*matrix)]
    return sorted(low for low in lows for high in highs if low == high)
-
def saddle_values(matrix):
    found = []
    for row in matrix:
        for j in range(len(row)):
            small = all(row[j] <= other for other in row)
            large = all(row[j] >= other[j] for other in matrix)
            if small and large:
                found.append(row[j])
    found.sort()
    return found

@ column-maxima 1
Write a function `column_maxima(rows)` that returns the largest value of every column of a matrix.
? column_maxima([]) == []
? column_maxima([[1, 5], [3, 2]]) == [3, 5]
? column_maxima([[7]]) == [7]
? column_maxima([[-1, -2], [-3, -1]]) == [-1, -1]
? column_maxima([[1, 2, 3]]) == [1, 2, 3]
-
def column_maxima(rows):
    return [max(column) for column in zip(*rows)]
-
def column_maxima(rows):
    if not rows:
        return []
    best = list(rows[0])
    for row in rows[1:]:
        for j, value in enumerate(row):
            if value > best[j]:
                best[j] = value
    return best
-
def column_maxima(rows):
    if len(rows) < 2:
        return list(rows[0]) if rows else []
    rest = column_maxima(rows[1:])
    return [a if a > b else b for a, b in zip(rows[0], rest)]

@ pascal-triangle 1
Write a function `pascal(n)` that returns the first `n` rows of the triangle that starts with [1] and in which every
other number is the sum of the two numbers above it.
? pascal(0) == []
? pascal(1) == [[1]]
? pascal(2) == [[1], [1, 1]]
? pascal(4) == [[1], [1, 1], [1, 2, 1], [1, 3, 3, 1]]
? pascal(5)[4] == [1, 4, 6, 4, 1]
-
def pascal(n):
    rows = []
    for i in range(n):
        row = [1] * (i + 1)
        for j in range(1, i):
            row[j] = rows[i - 1][j - 1] + rows[i - 1][j]
        rows.append(row)
    return rows
-
from math import comb

def pascal(n):
    return [[comb(i, j) for j in range(i + 1)] for i in range(n)]
-
def pascal(n):
    rows = []
    row = [1]
    while len(rows) < n:
        rows.append(row)
        row = [a + b for a, b in zip([0] + row, row + [0])]
    return rows

@ grid-paths 2
Write a function `paths(grid)` that counts the ways from the top left to the bottom right cell of a non-empty grid,
moving only right or down and never onto a cell that is 1.
? paths([[0]]) == 1
? paths([[1]]) == 0
? paths([[0, 0], [0, 0]]) == 2
? paths([[0, 1], [0, 0]]) == 1
? paths([[0, 0, 0], [0, 1, 0], [0, 0, 0]]) == 2
? paths([[0, 0, 0], [0, 0, 0]]) == 3
? paths([[0, 1], [1, 0]]) == 0
-
def paths(grid):
    ways = [1] + [0] * (len(grid[0]) - 1)
    for row in grid:
        for j, blocked in enumerate(row):
            if blocked:
                ways[j] = 0
            elif j > 0:
                ways[j] += ways[j - 1]
    return ways[-1]
-
def paths(grid):
    def count(i, j):
        if i < 0 or j < 0 or grid[i][j] == 1:
            return 0
        if i == 0 and j == 0:
            return 1
        return count(i - 1, j) + count(i, j - 1)
    return count(len(grid) - 1, len(grid[0]) - 1)
-
def paths(grid):
    if not grid or not grid[0] or grid[0][0]:
        return 0
    if len(grid) == 1 and len(grid[0]) == 1:
        return 1
    return paths(grid[1:]) + paths([row[1:] for row in grid])

@ toeplitz-matrix 1
Write a function `is_toeplitz(matrix)` that tells whether every diagonal running from top left to bottom right holds
only one value.
? is_toeplitz([]) == True
? is_toeplitz([[1, 2, 3]]) == True
? is_toeplitz([[1, 2], [3, 1]]) == True
? is_toeplitz([[1, 2], [2, 2]]) == False
? is_toeplitz([[5, 1, 2], [4, 5, 1], [3, 4, 6]]) == False
? is_toeplitz([[5, 1, 2], [4, 5, 1], [3, 4, 5]]) == True
? is_toeplitz([[5, 1, 2], [4, 5, 1], [3, 6, 5]]) == False
-
def is_toeplitz(matrix):
    for i in range(1, len(matrix)):
        for j in range(1, len(matrix[i])):
            if matrix[i][j] != matrix[i - 1][j - 1]:
                return False
    return True
-
def is_toeplitz(matrix):
    return all(upper[:-1] == lower[1:] for upper, lower in zip(matrix, matrix[1:]))
-
def is_toeplitz(matrix):
    diagonals = {}
    for i, row in enumerate(matrix):
        for j, value in enumerate(row):
            diagonals.setdefault(i - j, set()).add(value)
    return all(len(values) == 1 for values in diagonals.values())

@ shortest-grid-path 3
Write a function `shortest(grid)` that returns the smallest number of steps (up, down, left, right) over cells that
are 0 from the top left to the bottom right cell of a grid, or -1 if there is no way. Both corners are 0.
? shortest([[0]]) == 0
? shortest([[0, 0], [0, 0]]) == 2
? shortest([[0, 1], [1, 0]]) == -1
? shortest([[0, 1, 0], [0, 1, 0], [0, 0, 0]]) == 4
? shortest([[0, 0, 0, 1], [1, 1, 0, 1], [0, 0, 0, 1], [0, 1, 1, 1], [0, 0, 0, 0]]) == 11
? shortest([[0, 0, 0]]) == 2
-
def shortest(grid):
    goal = (len(grid) - 1, len(grid[0]) - 1)
    free = {(i, j) for i, row in enumerate(grid) for j, cell in enumerate(row) if cell == 0}
    edge, steps = {(0, 0)}, 0
    while edge:
        if goal in edge:
            return steps
        free -= edge
        edge = {(i + a, j + b) for i, j in edge for a, b in [(0, 1), (1, 0), (0, -1), (-1, 0)]} & free
        steps += 1
    return -1
-
def shortest(grid):
    best = {(0, 0): 0}
    queue = [(0, 0)]
    for i, j in queue:
        for a, b in [(i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)]:
            inside = 0 <= a < len(grid) and 0 <= b < len(grid[0])
            if inside and grid[a][b] == 0 and (a, b) not in best:
                best[a, b] = best[i, j] + 1
                queue.append((a, b))
    return best.get((len(grid) - 1, len(grid[0]) - 1), -1)

@ checkerboard 1
Write a function `checkerboard(rows, columns)` that returns a list of strings, one per row, in which "#" and "."
alternate in both directions; the top left cell is "#".
? checkerboard(0, 3) == []
? checkerboard(1, 1) == ["#"]
? checkerboard(2, 3) == ["#.#", ".#."]
? checkerboard(3, 2) == ["#.", ".#", "#."]
? checkerboard(2, 0) == ["", ""]
-
def checkerboard(rows, columns):
    return ["".join("#." [(i + j) % 2] for j in range(columns)) for i in range(rows)]
-
def checkerboard(rows, columns):
    board = []
    for i in range(rows):
        line = ""
        for j in range(columns):
            line += "#" if i % 2 == j % 2 else "."
        board.append(line)
    return board
-
def checkerboard(rows, columns):
    pattern = "#." * (columns + 1)
    return [pattern[i % 2:i % 2 + columns] for i in range(rows)]

@ flip-game-of-life 3
Write a function `next_state(grid)` that returns the next state of a grid of zeros and ones: a 1 with two or three
neighbours that are 1 stays, a 0 with exactly three becomes 1 and every other cell becomes 0. Cells have up to eight
neighbours.
? next_state([[1]]) == [[0]]
? next_state([[0, 1, 0], [0, 1, 0], [0, 1, 0]]) == [[0, 0, 0], [1, 1, 1], [0, 0, 0]]
? next_state([[1, 1], [1, 1]]) == [[1, 1], [1, 1]]
? next_state([[1, 1], [1, 0]]) == [[1, 1], [1, 1]]
? next_state([[1, 1, 1], [1, 1, 1], [1, 1, 1]]) == [[1, 0, 1], [0, 0, 0], [1, 0, 1]]
? next_state([[1, 0, 1], [0, 0, 0]]) == [[0, 0, 0], [0, 0, 0]]
-
def next_state(grid):
    live = {(i, j) for i, row in enumerate(grid) for j, cell in enumerate(row) if cell}
    def rule(i, j):
        near = sum(max(abs(i - a), abs(j - b)) == 1 for a, b in live)
        return int(near == 3 or (near == 2 and (i, j) in live))
    return [[rule(i, j) for j in range(len(row))] for i, row in enumerate(grid)]
-
def next_state(grid):
    result = []
    for i, row in enumerate(grid):
        new = []
        for j, cell in enumerate(row):
            block = [r[max(j - 1, 0):j + 2] for r in grid[max(i - 1, 0):i + 2]]
            total = sum(sum(part) for part in block)
            new.append(1 if total == 3 else cell if total == 4 else 0)
        result.append(new)
    return result
"""
