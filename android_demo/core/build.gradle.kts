// Not built in CI; see ../settings.gradle.kts.
plugins { id("org.jetbrains.kotlin.jvm") version "2.4.20" }

kotlin {
    compilerOptions {
        jvmTarget.set(org.jetbrains.kotlin.gradle.dsl.JvmTarget.JVM_1_8)
        freeCompilerArgs.add("-Xjdk-release=1.8")
    }
}

dependencies {
    compileOnly("com.microsoft.onnxruntime:onnxruntime:1.29.0")
    implementation("org.bouncycastle:bcprov-jdk18on:1.72")
}
