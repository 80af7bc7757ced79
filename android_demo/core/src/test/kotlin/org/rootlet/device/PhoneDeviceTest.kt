package org.rootlet.device

import java.io.File
import kotlin.concurrent.thread
import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertNull
import org.junit.Assert.assertTrue
import org.junit.Rule
import org.junit.Test
import org.junit.rules.TemporaryFolder
import org.rootlet.fleet.Answer
import org.rootlet.fleet.EventKind
import org.rootlet.fleet.FleetRequest
import org.rootlet.fleet.NodeKey
import org.rootlet.fleet.NodeKeyError
import org.rootlet.fleet.PemNodeKey
import org.rootlet.fleet.StopSignal

class PhoneDeviceTest {
    @get:Rule
    val temporary = TemporaryFolder()

    private val taught by lazy { Taught(temporary.root) }
    private val device by lazy { PhoneDevice(temporary.root, taught::bundle) }
    private val charging = DeviceConditions(charging = true, batteryLevel = 0.9, unmetered = true)
    private val key: () -> NodeKey = PemNodeKey.Companion::generate

    private fun work(
        now: DeviceConditions = charging,
        policy: ParticipationPolicy = ParticipationPolicy(),
        stop: StopSignal = StopSignal(),
        key: () -> NodeKey = this.key,
        onEvent: (EventKind) -> Unit = {},
    ) = device.work(stop, policy, { now }, key) { onEvent(it.kind) }

    @Test
    fun withoutAServerItLearnsAloneAndStopsWhenTold() {
        assertEquals(Turn("There was nothing to learn from yet.", false), work())
        taught.teach(device.learner)
        assertTrue(work(stop = StopSignal().apply { set() }).let { it.again && "interrupted" in it.told })
        assertEquals(Turn("Trained on this phone.", false), work())
        assertEquals("Trained on this phone.", PhoneDevice(temporary.root, taught::bundle).lastTurn)
        assertEquals("Nothing has left this phone.", Words.left(device.left()))
    }

    @Test
    fun aPauseIsKeptAndNothingRuns() {
        device.paused = true
        device.federation = FederationSettings.of("127.0.0.1:1", "")
        assertTrue(PhoneDevice(temporary.root, taught::bundle).paused)
        assertEquals(Turn("Paused.", false), work(key = { throw AssertionError("nobody may ask for it") }))
        device.paused = false
        assertFalse(PhoneDevice(temporary.root, taught::bundle).paused)
        assertTrue(Words.federation(device.federation, paused = true).startsWith("Paused"))
    }

    @Test
    fun thePolicyIsAskedBeforeAnythingIsSent() {
        device.federation = FederationSettings.of("127.0.0.1:1", "")
        assertTrue(work().told.startsWith("Teach it something first"))
        taught.teach(device.learner, 1)
        val turn = work(charging.copy(charging = false, unmetered = false))
        assertEquals(Turn("0 answers were sent to https://127.0.0.1:1. Waits: not charging, the network is metered.", true), turn)
        Ledger(FederationJob.ledgerFolder(temporary.root)).append("update", mapOf("bytes" to 1L))
        val spent = work(policy = ParticipationPolicy(maxRoundsPerDay = 1))
        assertTrue(spent.told, "1 rounds today, the most is 1" in spent.told)
    }

    @Test(timeout = 60_000)
    fun aPauseEndsATurnThatWaitsForItsServer() {
        device.federation = FederationSettings.of("127.0.0.1:1", "")
        taught.teach(device.learner, 1)
        val met = mutableListOf<EventKind>()
        val turn = work {
            met += it
            device.paused = true
        }
        assertEquals(listOf(EventKind.CONNECTION_LOST), met)
        assertEquals("0 answers were sent to https://127.0.0.1:1.", turn.told)
    }

    @Test
    fun aFailureIsToldAndTheAppLivesOn() {
        device.federation = FederationSettings.of("127.0.0.1:1", "")
        taught.teach(device.learner, 1)
        assertEquals(Turn("The last turn failed: no key", true), work(key = { throw NodeKeyError("no key") }))
        File(FederationJob.ledgerFolder(temporary.root), Ledger.FILE).apply { parentFile.mkdirs() }.writeText("{}\n")
        val broken = work()
        assertTrue(broken.told, "line 1 is not an entry" in broken.told)
    }

    @Test(timeout = 60_000)
    fun erasingEndsATurnAndLeavesTheLedgerAndThePause() {
        taught.teach(device.learner)
        device.learner.train { true }
        Ledger(FederationJob.ledgerFolder(temporary.root)).append("update", mapOf("bytes" to 7L, "protection" to "none"))
        device.federation = FederationSettings.of("127.0.0.1:1", "")
        var erasing: Thread? = null
        var forgotten = 0
        work { if (erasing == null) erasing = thread { device.erase { forgotten++ } } }
        erasing!!.join()
        assertEquals(1, forgotten)
        assertNull(device.federation)
        assertEquals(0, device.learner.examples.count)
        assertNull(device.learner.learnt)
        assertEquals(EnergySpent(), device.learner.energy.spent)
        assertEquals(7L, device.left().bytes)
        device.paused = true
        device.erase {}
        assertEquals(setOf("ledger", "paused"), temporary.root.list()!!.toSet())
    }

    @Test
    fun theGateLetsARequestWaitWhereThePolicyIsAgainstIt() {
        val stop = StopSignal()
        var reasons = emptyList<String>()
        val gate = PolicyGate({ _, _ -> Answer(emptyMap(), "answered") }, { reasons }, stop)
        val request = FleetRequest(1, "1", "train", emptyMap(), 0)
        assertEquals("answered", gate.answer(request) { false }!!.error)
        reasons = listOf("not charging")
        assertNull(gate.answer(request) { false })
        assertTrue(stop.isSet)
        assertEquals(reasons, gate.against)
    }
}
