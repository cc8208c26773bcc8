uniform sampler2DShadow shadow_map;

float lit(vec3 position, vec3 normal) {  // share of the key light that arrives, softened
    vec3 at = (shadow_matrix * vec4(position + normal * 0.05, 1.0)).xyz;
    if (any(lessThan(at, vec3(0.005))) || any(greaterThan(at, vec3(0.995)))) return 1.0;
    float sum = 0.0;
    for (int i = -1; i <= 1; ++i)
        for (int j = -1; j <= 1; ++j)
            sum += texture(shadow_map, at + vec3(vec2(i, j) * 1.8 / 512.0, -0.004));
    return sum / 9.0;
}

float lit_quick(vec3 position) {   // one sample, for hair, whose strands soften it anyway
    vec3 at = (shadow_matrix * vec4(position, 1.0)).xyz;
    return any(lessThan(at, vec3(0.005))) || any(greaterThan(at, vec3(0.995))) ? 1.0 : texture(shadow_map, at + vec3(0, 0, -0.012));
}

float gloss_lobe(vec3 n, vec3 view, vec3 light, float power) {
    return pow(max(dot(n, normalize(view + light)), 0.0), power) * (power + 8.0) / 25.0;
}

// Diffuse with a terminator softened per channel (`wrap`, after light bleeding under skin), two gloss lobes, rim, fill.
vec3 shade(vec3 albedo, vec3 position, vec3 n, vec3 wrap, float gloss, float power, float open) {
    vec3 view = normalize(camera.xyz - position);
    float s = lit(position, n);
    float nl = dot(n, key_dir.xyz);
    s = mix(1.0, s, smoothstep(-0.05, 0.35, nl));   // facets at the terminator would show: it's dark there anyway
    vec3 diffuse = clamp((vec3(nl) + wrap) / ((1.0 + wrap) * (1.0 + wrap)), 0.0, 1.0);
    vec3 arrive = mix(vec3(s), pow(vec3(s), vec3(0.55, 0.9, 1.0)), step(0.01, wrap.r));
    vec3 light = key_color.rgb * diffuse * arrive + ambient(n) * open;
    light += rim_color.rgb * max(dot(n, rim_dir.xyz), 0.0) * 0.6 * open;
    float fresnel = 0.35 + 0.65 * pow(1.0 - max(dot(n, view), 0.0), 5.0);
    vec3 shine = key_color.rgb * s * (0.65 * gloss_lobe(n, view, key_dir.xyz, power) + 0.35 * gloss_lobe(n, view, key_dir.xyz, power * 4.0)) * step(0.0, nl);
    shine += rim_color.rgb * gloss_lobe(n, view, rim_dir.xyz, power) * 0.5;
    shine += ambient(reflect(-view, n)) * 0.10 * open;
    return albedo * light + gloss * fresnel * shine;
}
