package org.rootlet.fleet

import kotlin.math.min

/**
 * A node's connection to a SuperLink: what one builds from the calls of the Fleet API.
 *
 * @property address as given.
 * @property clock the server's time, as far as known.
 * @param sleep waits for so many seconds.
 */
class FleetConnection internal constructor(
    val address: String,
    nodeKey: NodeKey,
    transport: Transport,
    heartbeatIntervalS: Double,
    limits: Limits,
    val clock: ServerClock,
    private val sleep: (Double) -> Unit,
) : FleetCalls(transport, nodeKey, heartbeatIntervalS, limits) {
    /**
     * Goes online, registering the key first where the server wants that; returns the node id.
     *
     * @throws NodeStillActiveError the server counts the key as online or does not know it.
     */
    fun activate(): Long {
        nodeId = try {
            activateNode()
        } catch (error: NodeStillActiveError) {
            if (!register()) throw error
            activateNode()
        }
        return nodeId
    }

    /**
     * Goes on as node [id], which this key had before; returns whether the server agrees.
     *
     * Unlike an activation this succeeds while the server still counts the node as online.
     */
    fun resume(id: Long): Boolean {
        val known = try {
            sendNodeHeartbeat(id)
        } catch (_: AuthenticationError) {
            false
        }
        if (known) nodeId = id
        return known
    }

    /** Stays online; returns whether the server still knows this node. */
    fun heartbeat(): Boolean = sendNodeHeartbeat(nodeId)

    /**
     * The objects of a message, by id, checked against their hashes.
     *
     * @throws MessageGoneError the server no longer has them, or did not get them in time.
     * @throws ProtocolError one does not match its hash, or together they exceed the limits.
     */
    fun fetch(envelope: Envelope): Map<String, ByteArray> {
        val contents = LinkedHashMap<String, ByteArray>()
        var budget = limits.messageBytes
        for (id in FleetObjects.treeIds(envelope.tree, limits)) {
            val content = fetchObject(envelope.metadata.runId, id)
            contents[id] = content
            budget -= content.size
            if (budget < 0) throw ProtocolError("message ${envelope.metadata.messageId} exceeds ${limits.messageBytes} bytes")
        }
        return contents
    }

    /**
     * Uploads a reply; returns whether the server holds it afterwards.
     *
     * False means that the server no longer wants it, or already took it: Flower does not say which.
     * Repeating the call is harmless.
     *
     * @param runtimeS seconds of work, for the server's statistics.
     * @throws RunEndedError the run has ended.
     * @throws ProtocolError the server asks for objects that the reply does not have, or does not store
     * what it asked for.
     */
    fun push(reply: SealedReply, runtimeS: Double = 0.0): Boolean {
        repeat(PUSH_ATTEMPTS) {
            val (session, wanted) = pushMessages(reply, runtimeS)
            val unknown = wanted.toSet() - reply.contents.keys
            if (unknown.isNotEmpty()) throw ProtocolError("the server asks for unknown objects: ${unknown.sorted().take(3)}")
            if (wanted.isEmpty()) return !taken(reply)
            if (wanted.all { pushObject(reply, session, it) }) return true
        }
        throw ProtocolError("the server did not store reply ${reply.messageId} in $PUSH_ATTEMPTS attempts")
    }

    /**
     * Whether the server no longer holds a pushed reply: the ServerApp deletes a reply's objects when it
     * has read it, and the end of the run does too.
     */
    fun taken(reply: SealedReply): Boolean = try {
        pullObject(reply.runId, reply.messageId) == null
    } catch (_: RunEndedError) {
        true
    }

    /** Goes offline. Repeating is harmless. */
    fun deactivate() = unlessCode(DEACTIVATION_FAILED, ::deactivateNode)

    /** Makes the server forget the key, where it does not authenticate nodes. Repeating is harmless. */
    fun unregister() = unlessCode(UNREGISTRATION_FAILED, ::unregisterNode)

    /** Registers the key where the server takes registrations and does not know it yet. */
    private fun register(): Boolean = try {
        registerNode()
        true
    } catch (error: ServerRefusedError) {
        if (error.code != REGISTRATION_DISABLED && error.code != PUBLIC_KEY_IN_USE) throw error
        false
    }

    private fun fetchObject(runId: Long, id: String): ByteArray {
        var waited = 0.0
        var wait = 0.05
        while (true) {
            val content = pullObject(runId, id) ?: throw MessageGoneError("the server no longer has object $id")
            if (content.isNotEmpty()) return content.also { FleetObjects.check(id, it, limits) }
            if (waited >= OBJECT_WAIT_S) throw MessageGoneError("object $id did not reach the server in ${waited.toInt()} s")
            sleep(wait)
            waited += wait
            wait = min(2 * wait, 2.0)
        }
    }

    /** Uploads an object; a repetition after a lost answer counts as stored. */
    private fun pushObject(reply: SealedReply, session: String, id: String): Boolean =
        pushObject(reply.runId, session, id, reply.contents.getValue(id)) || pullObject(reply.runId, id)?.isNotEmpty() == true

    /** Makes a call whose effect may already be there, which the server reports by [code]. */
    private fun unlessCode(code: Long, call: () -> Unit) {
        try {
            call()
        } catch (error: ServerRefusedError) {
            if (error.code != code) throw error
        }
    }

    companion object {
        /** Flower's bounds on the heartbeat interval, in seconds. */
        val HEARTBEAT_S: ClosedFloatingPointRange<Double> = 10.0..1800.0

        /**
         * Seconds. A node is offline after two intervals without a heartbeat: a device that vanishes holds
         * up a round for 30 s at most.
         */
        const val DEFAULT_HEARTBEAT_S: Double = 15.0

        /** How long a pulled message's objects may take to reach the server, in seconds. */
        private const val OBJECT_WAIT_S = 60.0
        private const val PUSH_ATTEMPTS = 3

        /**
         * Prepares a connection; nothing is sent.
         *
         * @param address `host:port`, `https://host:port`, or `http://` to this machine.
         * @param rootCertificate PEM of the authority that signed the server's certificate; null for the
         * system's authorities.
         * @param heartbeatIntervalS within Flower's 10 to 1800 s.
         * @throws InsecureAddressError plain HTTP to another machine.
         * @throws ConfigError not an address, an interval out of bounds, or an unusable certificate.
         */
        fun open(
            address: String,
            nodeKey: NodeKey,
            rootCertificate: ByteArray? = null,
            heartbeatIntervalS: Double = DEFAULT_HEARTBEAT_S,
            limits: Limits = Limits(),
            retry: RetryPolicy = RetryPolicy(),
            traffic: Traffic = Traffic(),
        ): FleetConnection {
            if (heartbeatIntervalS !in HEARTBEAT_S) {
                throw ConfigError("heartbeatIntervalS is $heartbeatIntervalS; Flower accepts 10 to 1800 s")
            }
            val clock = ServerClock()
            val sleep = { seconds: Double -> Thread.sleep((seconds * 1000).toLong()) }
            val http = HttpTransport(
                Endpoint.parse(address, rootCertificate != null),
                nodeKey,
                rootCertificate,
                retry,
                limits.objectBytes + (1 shl 20),
                clock,
                traffic,
                sleep,
            )
            return FleetConnection(address, nodeKey, http, heartbeatIntervalS, limits, clock, sleep)
        }
    }
}
