package org.rootlet.bundle

import org.rootlet.ManifestError
import org.rootlet.wire.JsonObject

/** Reads and checks the fields of a manifest, as `rootlet_runtime/manifest.py` does. */
internal class ManifestReader(private val fields: JsonObject) {
    fun read(): Manifest {
        if ("schema" in fields.names && fields.any("schema") != SCHEMA) {
            throw ManifestError("schema ${fields.any("schema")} is unknown; this library reads schema $SCHEMA")
        }
        val manifest = Manifest(
            name = slug("name"),
            version = bounded("version", fields.long("version"), 1, Long.MAX_VALUE),
            createdAt = time("created_at", fields.text("created_at")),
            expiresAt = fields.textOrNull("expires_at")?.let { time("expires_at", it) },
            publisher = fields.textOrNull("publisher"),
            task = oneOf("task", fields.text("task"), "classification", "regression"),
            rule = slug("rule"),
            optimizer = oneOf("optimizer", fields.text("optimizer"), *OPTIMIZERS.keys.toTypedArray()),
            maxBatch = small("max_batch", 65536),
            x = readTensor(fields.objectAt("x")),
            y = readTensor(fields.objectAt("y")),
            latent = fields.objectOrNull("latent")?.let(::readTensor),
            numOutputs = small("num_outputs", 10_000_000),
            labels = fields.listOrNull("labels")?.let { fields.texts("labels") },
            adapter = fields.objects("adapter").map(::readTensor),
            optimizerState = fields.objects("optimizer_state").map(::readTensor),
            graphs = objects("graphs") { GraphSpec(it.text("file"), it.texts("inputs"), it.texts("outputs")) },
            litertFile = fields.objectOrNull("litert")?.let(::litert),
            training = training(fields.objectAt("training")),
            cost = fields.objectAt("cost").let { cost ->
                cost.names.associateWith { bounded("cost.$it", cost.long(it), 0, Long.MAX_VALUE) }
            },
            files = objects("files") { FileEntry(it.text("sha256"), bounded("file size", it.long("size"), 0, UINT32)) },
        )
        readWhatIsNotKept(manifest.optimizer)
        if (fields.any("schema") != SCHEMA) throw ManifestError("schema: missing")
        fields.finish()
        ManifestCheck(manifest).check()
        return manifest
    }

    /** Fields that only describe: checked like the others, and used by nothing here. */
    private fun readWhatIsNotKept(optimizer: String) {
        fields.textOrNull("feedback")?.let { require(SLUG.matches(it)) { "feedback: '$it'" } }
        slug("adapter_kind")
        bounded("rank", fields.long("rank"), 0, 65536)
        positive("alpha", fields.double("alpha"))
        oneOf("base_dtype", fields.text("base_dtype"), "int8", "float32", "int4", "mixed")
        for (name in listOf("licence", "data_origin")) {
            val text = fields.text(name)
            require(text.codePointCount(0, text.length) <= 4096) { "$name: longer than 4096 characters" }
        }
        val given = fields.objectAt("hyperparameters")
        val known = OPTIMIZERS.getValue(optimizer)
        require(given.names == known.keys) {
            "hyperparameters: ${given.names.sorted()}; $optimizer reads exactly ${known.keys.sorted()}"
        }
        for ((name, bounds) in known) {
            val value = given.double(name)
            require(value in bounds) { "hyperparameter $name = $value: must lie in $bounds" }
        }
        fields.objectAt("extensions")
    }

    private fun training(it: JsonObject): TrainingDefaults {
        val defaults = TrainingDefaults(
            learningRate = positive("training.learning_rate", it.double("learning_rate")),
            batchSize = bounded("training.batch_size", it.long("batch_size"), 1, 65536).toInt(),
            epochs = bounded("training.epochs", it.long("epochs"), 1, 100_000).toInt(),
            decay = oneOf("training.decay", it.text("decay"), "constant", "linear", "cosine"),
            warmup = it.double("warmup"),
        )
        require(defaults.warmup in 0.0..0.5) { "training.warmup ${defaults.warmup}: must lie in 0..0.5" }
        it.finish()
        return defaults
    }

    private fun litert(it: JsonObject): String {
        val file = it.text("file")
        require(file == LITERT_FILE) { "litert.file is '$file', not '$LITERT_FILE'" }
        val batches = it.list("batches").map { size -> size as? Long ?: throw ManifestError("litert.batches: $size") }
        require(batches.size in 1..8 && batches == batches.distinct().sorted()) {
            "litert.batches $batches: must be one to eight sizes, growing"
        }
        batches.forEach { size -> bounded("litert.batches", size, 1, fields.long("max_batch")) }
        it.finish()
        return file
    }

    private fun <T> objects(name: String, read: (JsonObject) -> T): Map<String, T> {
        val entries = fields.objectAt(name)
        return entries.names.associateWith { key ->
            val entry = entries.objectAt(key)
            read(entry).also { entry.finish() }
        }
    }

    private fun slug(name: String): String =
        fields.text(name).also { require(SLUG.matches(it)) { "$name: '$it' does not match ${SLUG.pattern}" } }

    private fun small(name: String, high: Long): Int = bounded(name, fields.long(name), 1, high).toInt()

    private fun time(name: String, text: String) =
        Manifest.time(text) ?: throw ManifestError("$name: '$text' is not like 2026-11-23T09:30:00Z")

    private companion object {
        const val UINT32 = 0xffffffffL
        const val LITERT_FILE = "model.tflite"
        const val LARGEST_BETA = 1 - 1e-6
        val BETA = 0.0..LARGEST_BETA
        val MOMENTUM = mapOf("momentum" to BETA)
        val ADAM = mapOf("beta1" to BETA, "beta2" to BETA, "epsilon" to 2e-8..1.0)

        /** The bounds of what each optimiser reads (`rootlet_runtime/optimizers.py`). */
        val OPTIMIZERS: Map<String, Map<String, ClosedFloatingPointRange<Double>>> = mapOf(
            "adam" to ADAM,
            "adamw" to ADAM + mapOf("weight_decay" to 0.0..1.0),
            "momentum" to MOMENTUM,
            "nesterov" to MOMENTUM,
            "sgd" to emptyMap(),
            "sign_momentum" to MOMENTUM,
        )
    }
}

/** What the fields of a manifest must be to each other. */
internal class ManifestCheck(private val manifest: Manifest) {
    fun check() {
        val publisher = manifest.publisher
        require(publisher == null || HEX_32.matches(publisher)) { "publisher: '$publisher'" }
        val expires = manifest.expiresAt
        require(expires == null || expires > manifest.createdAt) { "expires_at is not after created_at" }
        require(manifest.training.batchSize <= manifest.maxBatch) {
            "training.batch_size ${manifest.training.batchSize} exceeds max_batch ${manifest.maxBatch}"
        }
        val labels = manifest.labels
        require(labels == null || labels.size == manifest.numOutputs) {
            "labels: ${labels?.size}, but num_outputs ${manifest.numOutputs}"
        }
        manifest.cost.keys.forEach { require(SLUG.matches(it)) { "cost: '$it'" } }
        manifest.files.forEach { (name, file) -> require(HEX_32.matches(file.sha256)) { "sha256 of $name" } }
        checkTensors()
        checkGraphs()
        require(manifest.files.isNotEmpty()) { "files: empty; every file of the bundle must be declared" }
        val content = manifest.graphs.values.map { it.file } + listOfNotNull(ADAPTER_FILE, BASE_FILE, manifest.litertFile)
        require(manifest.files.keys == content.toSet()) {
            "files: ${manifest.files.keys.sorted()}; this bundle declares exactly ${content.sorted()}"
        }
    }

    private fun checkTensors() {
        val open = { spec: TensorSpec -> spec.shape.firstOrNull { true } == null && spec.shape.isNotEmpty() }
        val x = manifest.x
        oneOf("x.dtype", x.dtype, "float32", "int64", "uint8")
        require(open(x) && null !in x.shape.drop(1)) { "x.shape ${x.shape}: only the first dimension is open" }
        val latent = manifest.latent
        require(latent == null || latent.dtype == "float32" && open(latent) && null !in latent.shape.drop(1)) {
            "latent: must be float32, its first dimension alone open: $latent"
        }
        val expected = if (manifest.classifies) {
            "int64" to listOf(null)
        } else {
            "float32" to listOf(null, manifest.numOutputs.toLong())
        }
        require(manifest.y.dtype to manifest.y.shape == expected) { "y is ${manifest.y}; ${manifest.task} needs $expected" }
        require(manifest.adapter.isNotEmpty()) { "adapter: empty; nothing would learn" }
        for (spec in manifest.adapter + manifest.optimizerState) {
            require(spec.dtype == "float32" && null !in spec.shape) {
                "${spec.name}: must be float32 with a closed shape, is $spec"
            }
        }
        val names = unique("adapter", manifest.adapter.map { it.name })
        for (slot in unique("optimizer_state", manifest.optimizerState.map { it.name })) {
            require(slot.substringAfter("/", "") in names) { "optimizer_state '$slot': not <slot>/<adapter name>" }
        }
    }

    private fun checkGraphs() {
        val graphs = manifest.graphs
        require(graphs.keys - OPTIONAL_ROLES == ROLES) { "graphs: ${graphs.keys.sorted()}; must be $ROLES or also some of $OPTIONAL_ROLES" }
        for ((role, graph) in graphs) {
            require(graph.file == "$role.onnx") { "graphs.$role.file is '${graph.file}', not '$role.onnx'" }
            val (inputs, outputs) = contract(role)
            val found = unique("graphs.$role.inputs", graph.inputs)
            val teacher = if (role == "train" && found.any { it in TEACHER }) TEACHER else emptySet()
            sameNames("graphs.$role.inputs", found - "step", inputs + teacher)
            require("step" !in found || role == "train") { "graphs.$role.inputs: 'step' belongs to the train graph only" }
            sameNames("graphs.$role.outputs", unique("graphs.$role.outputs", graph.outputs), outputs)
        }
        require((manifest.latent == null) == ("encode" !in graphs)) {
            "latent: declared together with an encode graph, or not at all"
        }
        require(manifest.litertFile == null || manifest.latent == null && !manifest.distils) {
            "litert: its model takes neither a latent nor a teacher"
        }
    }

    private fun contract(role: String): Pair<Set<String>, Set<String>> {
        val adapter = manifest.adapter.map { "adapter/${it.name}" }.toSet()
        val state = manifest.optimizerState.map { "optimizer/${it.name}" }.toSet()
        return when (role) {
            "predict" -> adapter + "x" to setOf("output")
            "encode" -> setOf("x") to setOf("latent")
            "evaluate" -> adapter + EXAMPLES to SUMS
            "grads" -> adapter + EXAMPLES + "max_grad_norm" to SUMS + manifest.adapter.map { "grads/${it.name}" }
            else -> adapter + state + EXAMPLES + "learning_rate" to
                (adapter + state).map { "next/$it" }.toSet() + setOf("loss", "metric")
        }
    }

    private fun unique(name: String, items: List<String>): Set<String> {
        val found = items.toSet()
        require(found.size == items.size) { "$name: a name appears twice in $items" }
        return found
    }

    private fun sameNames(name: String, found: Set<String>, expected: Set<String>) = require(found == expected) {
        "$name: missing ${(expected - found).sorted()}, unexpected ${(found - expected).sorted()}"
    }

    private companion object {
        val ROLES = setOf("train", "evaluate", "predict")
        val OPTIONAL_ROLES = setOf("grads", "encode")
        val SUMS = setOf("loss_sum", "metric_sum", "weight_sum")
        val EXAMPLES = setOf("x", "y", "w")
        val TEACHER = setOf("teacher", "teacher_weight")
        val HEX_32 = Regex("[0-9a-f]{64}")
    }
}

private val SLUG = Regex("[a-z0-9][a-z0-9._-]{0,63}")

private fun bounded(name: String, value: Long, low: Long, high: Long): Long =
    value.also { require(it in low..high) { "$name: $it; must lie in $low..$high" } }

private fun positive(name: String, value: Double): Double =
    value.also { require(it.isFinite() && it > 0) { "$name: $it; must be positive and finite" } }

private fun oneOf(name: String, value: String, vararg allowed: String): String =
    value.also { require(it in allowed) { "$name: '$it'; must be one of ${allowed.toList()}" } }
