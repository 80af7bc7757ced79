package org.rootlet.privacy

/**
 * What a device has spent, by Renyi differential privacy, without the server's accountant.
 *
 * A Gaussian mechanism of noise multiplier z on a Poisson sample of rate q has, at whole orders a,
 *
 *     RDP(a) = a / (2 z^2)                                                          for q = 1
 *     RDP(a) = log(sum_k C(a, k) (1 - q)^(a - k) q^k exp((k^2 - k) / (2 z^2))) / (a - 1)   else
 *
 * (Mironov, Talwar & Zhang 2019, section 3.3); mechanisms add up, and for every order
 *
 *     epsilon = RDP(a) + log((a - 1) / a) - (log(delta) + log(a)) / (a - 1)
 *
 * (Canonne, Kamath & Steinke 2020, proposition 12). An upper bound; the same as the Python SDK's.
 */
internal object RenyiPrivacy {
    private val ORDERS = (2..64) + (72..128 step 8) + listOf(192, 256, 384, 512, 1024)

    /** log n!, for n up to the largest order. */
    private val LOG_FACTORIAL: DoubleArray by lazy {
        DoubleArray(ORDERS.last() + 1).also { for (n in 1 until it.size) it[n] = it[n - 1] + Math.log(n.toDouble()) }
    }

    /** A bound on the epsilon of all of it together, of one unit; 0 for nothing. */
    fun epsilonAtMost(spent: List<PrivacySpent>, delta: Double): Double {
        val charged = spent.filter { it.steps > 0 }
        if (charged.isEmpty()) return 0.0
        val best = ORDERS.minOf { order ->
            val divergence = charged.sumOf { it.steps * renyi(order, it.sampleRate, it.noiseMultiplier) }
            divergence + Math.log((order - 1.0) / order) - (Math.log(delta) + Math.log(order.toDouble())) / (order - 1)
        }
        return maxOf(best, 0.0)
    }

    private fun renyi(order: Int, rate: Double, z: Double): Double {
        if (rate >= 1) return order / (2 * z * z)
        val terms = DoubleArray(order + 1) { k ->
            LOG_FACTORIAL[order] - LOG_FACTORIAL[k] - LOG_FACTORIAL[order - k] + (order - k) * Math.log1p(-rate) +
                k * Math.log(rate) + (k.toDouble() * k - k) / (2 * z * z)
        }
        val largest = terms.maxOrNull()!!
        return (largest + Math.log(terms.sumOf { Math.exp(it - largest) })) / (order - 1)
    }
}
