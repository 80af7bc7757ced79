package org.rootlet.device

import java.io.File
import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertThrows
import org.junit.Assert.assertTrue
import org.junit.Rule
import org.junit.Test
import org.junit.rules.TemporaryFolder
import org.rootlet.fleet.ConfigError

class DeviceSettingsTest {
    @get:Rule
    val folder = TemporaryFolder()

    @Test
    fun whatWasChosenOutlivesTheProcess() {
        val file = File(folder.root, "settings")
        assertEquals(DeviceSettings(), DeviceSettings.load(file))
        val chosen = DeviceSettings(paused = true, server = "https://fl.example.org:8443", certificate = "-----BEGIN\nabc\n")
        chosen.save(file)
        assertEquals(chosen, DeviceSettings.load(file))
        assertFalse(chosen.joins)
        assertTrue(chosen.copy(paused = false).joins)
        file.writeText("{\"paused\": 1}")
        assertThrows(ConfigError::class.java) { DeviceSettings.load(file) }
    }

    @Test
    fun aServerWithoutTlsIsRefused() {
        val error = assertThrows(ConfigError::class.java) { DeviceSettings(server = "http://fl.example.org") }
        assertTrue("must start with https://" in error.message!!)
    }

    @Test
    fun theEstimateIsThatOfPythonsTable() {
        val cost = mapOf("train_macs_int8" to 1000L, "train_macs_float32" to 200L, "predict_macs_int8" to 500L, "weight_bytes" to 4000L)
        // rootlet_runtime.energy.count_work(cost, train_examples=10, train_batches=2).estimated_j, and one prediction
        assertEquals(1.3962e-6, EnergyEstimate(cost).training(10, 2), 1e-12)
        assertEquals(6.5365e-7, EnergyEstimate(cost).predicting(1, 1), 1e-12)
    }

    @Test
    fun theLedgerIsToldInWords() {
        val ledger = Ledger(folder.root)
        assertEquals("Nothing has left this phone.", WhatLeft(Ledger.read(folder.root)).summary(0.0, 1e-5))
        ledger.append("update", mapOf("bytes" to 1200L, "protection" to "none"))
        ledger.append("update", mapOf("bytes" to 300L, "protection" to "differential privacy"))
        ledger.append("metrics", mapOf("bytes" to 50L, "protection" to "none"))
        val left = WhatLeft(Ledger.read(folder.root))
        assertEquals(2 to 1550L, left.updates to left.bytes)
        val told = left.summary(1.234, 1e-5)
        assertTrue(told, told.startsWith("2 updates of the adapter left this phone (1 of them in clear to the server), 1550 bytes"))
        assertTrue(told, "Epsilon spent: 1.23 at delta 1.0E-5 (per device)." in told)
        assertTrue("no epsilon is promised" in left.summary(0.0, 1e-5))
        assertEquals(2, left.updatesOn(Ledger.read(folder.root).last().time.take(10)))
    }
}
