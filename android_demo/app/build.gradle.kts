// Not built in CI; see ../settings.gradle.kts. Put a bundle and its publisher's key into
// src/main/assets (digits.rootlet, publisher.hex): build/reference.py makes a pair.
plugins {
    id("com.android.application") version "8.13.0"
    id("org.jetbrains.kotlin.android") version "2.4.20"
}

android {
    namespace = "org.rootlet.demo"
    compileSdk = 34
    defaultConfig {
        minSdk = 26
        targetSdk = 34
        ndk { abiFilters += listOf("arm64-v8a", "x86_64") }
    }
    buildTypes {
        release {
            isMinifyEnabled = true
            proguardFiles("../build/shrink.pro")
        }
    }
    for (type in listOf("debug", "release")) sourceSets.getByName(type).manifest.srcFile("src/gradle/AndroidManifest.xml")
}

dependencies {
    implementation(project(":core"))
    implementation("com.microsoft.onnxruntime:onnxruntime-android:1.29.0")
}
