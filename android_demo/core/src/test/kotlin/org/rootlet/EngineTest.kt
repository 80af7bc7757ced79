package org.rootlet

import ai.onnxruntime.OrtEnvironment
import org.junit.Assert.assertTrue
import org.junit.Test

class EngineTest {
    @Test
    fun theEngineIsTheOneThatTheAppShips() {
        val environment = OrtEnvironment.getEnvironment()
        environment.setTelemetry(false)
        assertTrue(environment.version, environment.version.startsWith("1.29"))
    }
}
