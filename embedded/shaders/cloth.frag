in vec3 v_position;
in vec3 v_normal;
in vec3 v_rest;
in vec2 v_uv;
in float v_open;
out vec4 color;
uniform vec3 albedo;
uniform vec3 under;     // the shirt below a blazer
uniform vec4 cut;       // garment number, stripes, layer (0 outer, 1 under), seed
float neckline(vec3 p, int garment) {   // > 0 where cloth is
    float x = abs(p.x), away = length(vec2(p.x * 0.9, p.z - 0.15));
    float collar = 5.74 - 0.30 * smoothstep(0.0, 0.9, p.z) + 0.10 * smoothstep(0.2, 0.9, x);
    if (garment == 1) return collar + 0.02 - 0.62 * max(0.0, 1.0 - x / 0.42) * step(0.2, p.z) - p.y;     // v-neck
    if (garment == 2) return 6.12 + 0.10 * smoothstep(0.6, -0.3, p.z) - p.y;                              // turtleneck
    if (garment == 3) return collar + 0.16 - 1.5 * max(0.0, 1.0 - x / 0.52) * step(0.2, p.z) - p.y;       // blazer
    if (garment == 5) return min(collar - 0.26 - 0.2 * step(0.2, p.z) * (1.0 - smoothstep(0.3, 0.7, x)) + 0.26 * smoothstep(0.45, 0.75, x) - p.y,
                                 (1.42 - 0.15 * (5.6 - p.y)) - x + 0.0);                                  // tank top
    if (garment == 6) return collar + 0.20 - 0.42 * max(0.0, 1.0 - x / 0.22) * step(0.2, p.z) - p.y;      // shirt
    return collar + (garment == 4 ? 0.10 : 0.0) - p.y;                                                     // t-shirt, hoodie
}
void main() {
    vec3 p = v_rest;
    int garment = int(cut.x + 0.5);
    float inside = neckline(p, cut.z > 0.5 ? 6 : garment);
    if (inside < 0.0) discard;
    vec3 n = normalize(gl_FrontFacing ? v_normal : -v_normal);
    vec3 base = cut.z > 0.5 ? under : albedo;
    float folds = fbm(vec3(p.x * 2.2, p.y * 1.1, p.z * 2.2) + cut.w * 31.0);
    n = normalize(n + 0.55 * vec3(fbm(p * 2.3 + cut.w) - 0.5, 0.0, fbm(p * 2.3 + 9.0 + cut.w) - 0.5));
    float tone = 0.86 + 0.26 * folds + 0.05 * (noise(p * 60.0) - 0.5);
    if (garment == 1 || garment == 2) tone *= 0.90 + 0.14 * abs(sin(p.x * 46.0 + p.z * 20.0));            // knit ribs
    if (cut.y > 0.5 && cut.z < 0.5) base = mix(base, base.g > 0.4 ? vec3(0.02, 0.03, 0.08) : vec3(0.8), step(0.5, fract(p.y * 3.2 + 0.2)));
    float hem = garment == 3 ? 0.05 : 0.085;
    if (garment == 0 || garment == 4 || garment == 5) tone *= mix(0.80, 1.0, smoothstep(hem, hem + 0.012, inside)) * 1.0;
    tone *= mix(0.55, 1.0, smoothstep(0.0, 0.02, inside));
    if (garment == 3 && cut.z < 0.5) {                                                                      // lapels
        float lapel = inside / 1.2;
        tone *= (p.z > 0.2 && lapel > 0.0 && lapel < 0.34) ? mix(1.22, 0.75, smoothstep(0.30, 0.34, lapel)) : 1.0;
    }
    if ((garment == 6 || cut.z > 0.5) && p.z > 0.3) {                                                      // placket and buttons
        tone *= mix(0.82, 1.0, smoothstep(0.0, 0.012, abs(abs(p.x) - 0.09)));
        float button = length(vec2(p.x, fract(p.y * 1.8) / 1.8 - 0.28));
        tone *= mix(0.6, 1.0, smoothstep(0.03, 0.04, button));
        if (inside < 0.26 && p.y > 5.2) tone *= mix(0.75, 1.12, smoothstep(0.0, 0.03, 0.26 - inside));     // collar
    }
    if (garment == 4) {                                                                                     // strings
        float cord = abs(abs(p.x) - 0.2 - 0.02 * sin(p.y * 8.0));
        if (p.z > 0.3 && p.y > 4.5 && cord < 0.028) base = mix(base, vec3(0.85), 0.8);
    }
    color = vec4(to_screen(shade(base * tone, v_position, n, vec3(0.10), 0.02, 8.0, v_open)), 1.0);
}
