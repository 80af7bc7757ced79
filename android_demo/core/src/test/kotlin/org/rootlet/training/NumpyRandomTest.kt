package org.rootlet.training

import org.junit.Assert.assertArrayEquals
import org.junit.Assert.assertEquals
import org.junit.Test

/** Known answers of NumPy 2.4: `np.random.default_rng([…]).permutation(n)`. */
class NumpyRandomTest {
    @Test
    fun permutations() {
        assertArrayEquals(intArrayOf(9, 11, 1, 3, 2, 4, 6, 7, 0, 10, 5, 8), NumpyRandom(5, 0).permutation(12))
        assertArrayEquals(intArrayOf(11, 3, 10, 2, 4, 9, 1, 6, 5, 8, 7, 0), NumpyRandom((1L shl 62) + 12345, 3).permutation(12))
        assertArrayEquals(intArrayOf(0, 8, 1, 11, 3, 2, 6, 5, 4, 9, 7, 10), NumpyRandom(7, 2, 1, 1L shl 40, 9).permutation(12))
        assertArrayEquals(intArrayOf(0), NumpyRandom(0).permutation(1))
    }

    @Test
    fun everyRowIsThereOnce() = assertEquals((0 until 1000).toList(), NumpyRandom(3).permutation(1000).sorted())
}
