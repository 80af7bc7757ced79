// For Android Studio. Not built in CI: Gradle's plugins for Android are not to be had there
// (README.md). The build that is tested is build/build.py.
pluginManagement {
    repositories {
        google()
        mavenCentral()
        gradlePluginPortal()
    }
}
dependencyResolutionManagement {
    repositories {
        google()
        mavenCentral()
    }
}
rootProject.name = "rootlet-demo"
include(":core", ":app")
