package android.security.keystore;

import java.security.spec.AlgorithmParameterSpec;

public final class KeyGenParameterSpec implements AlgorithmParameterSpec {
    public static final class Builder { public Builder(String alias, int purposes) {}
    public Builder setAlgorithmParameterSpec(AlgorithmParameterSpec what) { return this; }
    public Builder setDigests(String... digests) { return this; }
    public KeyGenParameterSpec build() { return null; } } }
