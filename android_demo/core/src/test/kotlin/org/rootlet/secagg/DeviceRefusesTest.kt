package org.rootlet.secagg

import org.junit.Assert.assertThrows
import org.junit.Assert.assertTrue
import org.junit.Test

/** What a device refuses of a server, malicious or broken, as `tests/server/secagg/test_device_refuses.py` has it. */
class DeviceRefusesTest {
    @Test
    fun rostersAndKeysThatAreNotTheRounds() {
        refused("the roster lacks this device") { round ->
            val other = RoundOfDevices()
            round.devices[0].share(other.roster, other.around(0))
        }
        refused("other keys of this device") { round ->
            val own = DeviceRound(round.identities[0], round.plan).advertise()
            round.devices[0].share(round.rosterOf(listOf(own) + round.advertisements.drop(1)), round.around(0))
        }
        refused("not those of the round's graph") { round -> round.devices[0].share(round.roster, round.around(0) - 1) }
        refused("the keys of device 1 are not those of the roster") { round ->
            round.devices[0].share(round.roster, round.around(0) + (1 to round.advertisements[2]))
        }
        refused("the keys of device 1 are of another device") { round ->
            val twice = round.advertisements.toMutableList().also { it[1] = it[2] }
            round.devices[0].share(round.rosterOf(twice), round.around(0) + (1 to twice[1]))
        }
    }

    @Test
    fun keysThatWereExchangedInTheRosterToo() {
        for (part in 0 until 3) {
            refused("not signed by it for this round") { round ->
                val true1 = round.advertisements[1]
                val parts = listOf(true1.channelKey, true1.maskKey, true1.commitment).toMutableList()
                parts[part] = ByteArray(32) { it.toByte() }
                exchanged(round, Advertisement(parts[0], parts[1], parts[2], true1.signature, true1.certificate))
            }
        }
        refused("not signed by it for this round") { round -> // those of an earlier round
            val earlier = Enrolled.plan(more = mapOf("round_id" to "f".repeat(32)))
            exchanged(round, DeviceRound(round.identities[1], earlier).advertise())
        }
    }

    @Test
    fun neighboursThatTheServerChose() {
        val round = RoundOfDevices(Enrolled.plan(devices = 70, more = mapOf("degree" to 32L)), 70)
        val chosen = (0 until 70).filter { it !in round.roster.neighbours(0) && it != 0 }.associateWith { round.advertisements[it] }
        refusal("not those of the round's graph") { round.devices[0].share(round.roster, chosen) }
    }

    @Test
    fun sharesThatWereChanged() {
        refused("changed on their way") { round ->
            val inbox = round.inbox(round.shared(), 0)
            inbox.getValue(1).let { it[it.size - 1] = (it.last().toInt() xor 1).toByte() }
            round.devices[0].upload(inbox, IntArray(3))
        }
        refused("changed on their way") { round -> // swapped
            val inbox = round.inbox(round.shared(), 0)
            round.devices[0].upload(inbox + mapOf(1 to inbox.getValue(2), 2 to inbox.getValue(1)), IntArray(3))
        }
        refused("changed on their way") { round -> // of another round
            val other = RoundOfDevices()
            val replayed = other.inbox(other.shared(), 0).getValue(1)
            round.devices[0].upload(round.inbox(round.shared(), 0) + (1 to replayed), IntArray(3))
        }
        refused("changed on their way") { round -> round.devices[0].upload(round.inbox(round.shared(), 0) + (1 to ByteArray(5)), IntArray(3)) }
    }

    @Test
    fun tooFewSharesAndSharesOfStrangers() {
        refused("4 devices hold each other's shares, and 5 are needed") { round ->
            round.devices[0].upload(round.inbox(round.shared(), 0, 1..3), IntArray(3))
        }
        refused("shares of devices that are no neighbours") { round ->
            round.devices[0].upload(round.inbox(round.shared(), 0) + (99 to ByteArray(0)), IntArray(3))
        }
    }

    @Test
    fun aNeighbourThatDoesNotFollowTheProtocol() {
        val weak = RoundOfDevices { place, key ->
            if (place == 5) signed(key, ByteArray(32), RoundKeys.privateKey().generatePublicKey().encoded) else null
        }
        refusal("a public key that agrees with nobody") { weak.devices[0].share(weak.roster, weak.around(0)) }

        val channel = RoundKeys.privateKey()
        val short = RoundOfDevices { place, key ->
            if (place == 5) signed(key, channel.generatePublicKey().encoded, channel.generatePublicKey().encoded) else null
        }
        val shares = (0 until 5).map { short.devices[it].share(short.roster, short.around(it)) }
        val digest = short.roster.digest
        val key = RoundKeys.derive(RoundKeys.agree(channel, short.advertisements[0].channelKey), "channel", digest, 0, 5)
        val sealed = RoundKeys.seal(key, ByteArray(10), digest, 5, 0)
        refusal("the shares from device 5 have 10 bytes") {
            short.devices[0].upload((1 until 5).associateWith { shares[it].getValue(0) } + (5 to sealed), IntArray(3))
        }
    }

    @Test
    fun liveSetsThatCannotBe() {
        refused("3 devices are left, and 4 are needed") { round -> round.uploaded().let { it.devices[0].confirm(it.bitmap(0 until 3)) } }
        refused("this device is said to be lost") { round -> round.uploaded().let { it.devices[0].confirm(it.bitmap(1 until 6)) } }
        refused("3 of the neighbours are left, and 5 are needed", Enrolled.plan(minLive = 2)) { round ->
            round.uploaded().let { it.devices[0].confirm(it.bitmap(0 until 3)) }
        }
        refused("shared nothing with this one") { round ->
            round.devices[0].upload(round.inbox(round.shared(), 0, 0 until 5), IntArray(3))
            round.devices[0].confirm(round.bitmap(0 until 6))
        }
        refused("not the one that this device has confirmed") { round ->
            val signatures = confirmed(round.uploaded())
            round.devices[0].unmask(round.bitmap(listOf(0, 2, 3, 4, 5)), signatures - 0)
        }
    }

    @Test
    fun signaturesThatAreForgedTooFewOrOfTheLost() {
        refused("device 1 has not signed this live set") { round ->
            round.devices[0].unmask(round.bitmap(0 until 6), confirmed(round.uploaded()) - 0 + (1 to ByteArray(64)))
        }
        refused("a signature of device 77, which is lost or no neighbour") { round ->
            round.devices[0].unmask(round.bitmap(0 until 6), confirmed(round.uploaded()) - 0 + (77 to ByteArray(64)))
        }
        refused("a signature of device 5, which is lost or no neighbour") { round ->
            round.uploaded()
            val live = round.bitmap(0 until 5)
            val signatures = (0 until 5).associateWith { round.devices[it].confirm(live) }
            round.devices[0].unmask(live, signatures - 0 + (5 to signatures.getValue(1)))
        }
        refused("4 neighbours have signed the live set, and 5 are needed") { round ->
            round.devices[0].unmask(round.bitmap(0 until 6), confirmed(round.uploaded()).filterKeys { it in 1..3 })
        }
    }

    @Test
    fun twoLiveSetsNeverBothFindEnoughSignatures() {
        val round = RoundOfDevices().uploaded()
        val told = { place: Int -> round.bitmap(if (place < 3) 0 until 6 else 1 until 6) } // device 0 is the victim
        val signatures = (0 until 6).associateWith { round.devices[it].confirm(told(it)) }
        for (place in 0 until 6) {
            val alike = signatures.filterKeys { it != place && (it < 3) == (place < 3) }
            refusal("3 neighbours have signed the live set, and 5 are needed") { round.devices[place].unmask(told(place), alike) }
        }
    }

    @Test
    fun aStageAgainOrOutOfOrder() {
        refused("stage 'confirm' again or out of order: this device is at 'share'") { round -> round.devices[0].confirm(byteArrayOf(63)) }
        refused("stage 'advertise' again") { round -> round.devices[0].advertise() }
        refused("stage 'share' again") { round -> repeat(2) { round.devices[0].share(round.roster, round.around(0)) } }
        refused("stage 'unmask' again") { round ->
            val signatures = confirmed(round.uploaded())
            repeat(2) { round.devices[0].unmask(round.bitmap(0 until 6), signatures - 0) }
        }
    }

    private fun confirmed(round: RoundOfDevices) = round.devices.indices.associateWith { round.devices[it].confirm(round.bitmap(0 until 6)) }

    private fun exchanged(round: RoundOfDevices, other: Advertisement) {
        val roster = round.rosterOf(round.advertisements.toMutableList().also { it[1] = other })
        round.devices[0].share(roster, round.around(0) + (1 to other))
    }

    private fun signed(key: RawIdentityKey, channel: ByteArray, mask: ByteArray) =
        Advertisement.sign(key, Enrolled.certificate(key), Enrolled.plan(), channel, mask, ByteArray(32))

    /** The first device refuses a step, and then whatever comes, for it has forgotten the round. */
    private fun refused(words: String, plan: SecurePlan = Enrolled.plan(), step: (RoundOfDevices) -> Unit) {
        val round = RoundOfDevices(plan)
        refusal(words) { step(round) }
        refusal("this device is at 'over'") { round.devices[0].share(round.roster, round.around(0)) }
    }

    private fun refusal(words: String, step: () -> Unit) {
        val error = assertThrows(words, SecureRoundRefusedError::class.java) { step() }
        assertTrue("${error.message}", words in error.message!!)
    }
}
