in vec3 v_position;
in vec3 v_normal;
in vec3 v_rest;
in vec2 v_uv;
in float v_open;
out vec4 color;

uniform sampler2D atlas;        // lips, lids, ears, face
uniform vec4 atlas_uv;
uniform vec3 albedo;
uniform vec3 blood;             // what redness shifts the albedo towards
uniform vec4 marks;             // freckles, blotches, redness, gloss
uniform vec4 face;              // age in [0,1], lip tint, lipstick, stubble
uniform vec3 hair_albedo;
uniform vec3 brow_albedo;
uniform vec4 brows_a;           // thickness, arch, density, tilt
uniform vec4 brows_b;           // lift, scalp paint, mustache paint, seed
uniform vec3 moles[3];          // at rest; z unused: x, y, radius
uniform float hairline[MAX_KNOTS];

float bump(vec2 at, vec2 center, vec2 size) { vec2 d = (at - center) / size; return exp(-dot(d, d)); }

float hairline_at(vec3 p) {
    float along = degrees(atan(abs(p.x), p.z - 0.45)) / 10.0;
    int low = clamp(int(floor(along)), 0, MAX_KNOTS - 2);
    return mix(hairline[low], hairline[low + 1], along - float(low));
}

float brow_mask(vec3 p) {
    float x = abs(p.x), t = (x - 0.115) / 0.40;   // 0 inner, 1 outer end
    if (t < -0.1 || t > 1.1 || p.z < 0.7) return 0.0;
    float line = 7.475 + 0.025 * brows_b.x + (0.055 + 0.045 * brows_a.y) * sin(3.14159 * clamp(t * 0.85 + 0.02, 0.0, 1.0)) + 0.03 * brows_a.w * (t - 0.5);
    float body = smoothstep(-0.06, 0.12, t) * (1.0 - smoothstep(0.72, 1.04, t));
    float half_width = (0.048 + 0.021 * brows_a.x) * mix(1.0, 0.42, t * t);
    float edge = abs(p.y - line) / half_width;
    float strands = noise(vec3(p.x * 60.0 - p.y * 50.0 * sign(p.x), p.y * 22.0, 3.0));
    return body * (1.0 - smoothstep(0.45, 1.05, edge + 0.5 * (strands - 0.5))) * (0.72 + 0.22 * brows_a.z) * (0.78 + 0.4 * strands);
}

float beard_mask(vec3 p) {   // jaw, chin, upper lip and sideburns
    float x = abs(p.x);
    float cheek_line = mix(6.72, 7.05, smoothstep(0.25, 0.66, x));
    float jaw = (1.0 - smoothstep(cheek_line - 0.10, cheek_line + 0.04, p.y)) * smoothstep(6.02, 6.2, p.y) * smoothstep(0.15, 0.5, p.z);
    float lip = bump(vec2(x, p.y), vec2(0.10, 6.80), vec2(0.17, 0.05)) * step(0.9, p.z);
    return clamp(max(jaw, lip), 0.0, 1.0);
}

void main() {
    vec3 p = v_rest, seed = vec3(brows_b.w * 61.0);
    vec3 n = normalize(v_normal);
    vec2 at = (v_uv - atlas_uv.xy) / (atlas_uv.zw - atlas_uv.xy);
    vec4 mask = (at.x > 0.0 && at.x < 1.0 && at.y > 0.0 && at.y < 1.0) ? texture(atlas, at) : vec4(0);
    float front = smoothstep(0.55, 0.95, p.z);

    float broad = fbm(p * 3.1 + seed) - 0.5, fine = fbm(p * 19.0 + seed) - 0.5, pore = noise(p * 95.0) - 0.5;
    vec3 skin = albedo * (1.0 + 0.10 * marks.y * broad + 0.09 * fine + 0.05 * pore);
    float red = 0.35 * bump(vec2(abs(p.x), p.y), vec2(0.42, 6.93), vec2(0.22, 0.20)) * front
              + 0.45 * bump(p.xy, vec2(0.0, 6.98), vec2(0.15, 0.13)) * front + 0.4 * mask.b
              + 0.18 * bump(p.xy, vec2(0.0, 6.35), vec2(0.2, 0.15)) * front;
    red = red * (0.45 + 0.9 * marks.z) + 0.25 * marks.y * max(broad + fine, 0.0);
    skin = mix(skin, skin * blood, clamp(red, 0.0, 1.0));
    skin *= 1.0 - 0.16 * bump(vec2(abs(p.x), p.y), vec2(0.29, 7.19), vec2(0.17, 0.06)) * front * (0.5 + face.x);  // under the eyes

    // Freckles: dots in cells, over nose and cheeks.
    vec3 cell = p * 26.0 + seed, id = floor(cell);
    vec3 dot_at = fract(cell) - 0.5 - 0.5 * (vec3(hash(id), hash(id + 5.2), hash(id + 9.7)) - 0.5);
    float dots = (1.0 - smoothstep(0.16, 0.34, length(dot_at))) * step(0.45, hash(id + 2.4));
    float where_ = (bump(vec2(abs(p.x), p.y), vec2(0.28, 7.02), vec2(0.36, 0.28)) + 0.2) * front;
    skin *= 1.0 - marks.x * dots * where_ * vec3(0.30, 0.42, 0.5);
    for (int i = 0; i < 3; ++i)
        if (moles[i].z > 0.0)
            skin *= mix(vec3(1.0), vec3(0.30, 0.22, 0.2), (1.0 - smoothstep(0.6, 1.0, length(p.xy - moles[i].xy) / moles[i].z)) * front);

    // Age: lines on the forehead, at the nose's wings and the outer corners of the eyes.
    float age = face.x;
    float forehead = bump(p.xy, vec2(0.0, 7.78), vec2(0.42, 0.15)) * front;
    float lines = forehead * pow(0.5 + 0.5 * sin(p.y * 62.0 + 2.0 * noise(p * 5.0 + seed)), 6.0);
    float x = abs(p.x);
    float fold_at = 0.20 + 0.62 * max(6.93 - p.y, 0.0);
    lines += 1.2 * front * exp(-pow((x - fold_at) / 0.022, 2.0)) * smoothstep(6.52, 6.68, p.y) * (1.0 - smoothstep(6.86, 6.96, p.y));
    lines += front * bump(vec2(x, p.y), vec2(0.52, 7.30), vec2(0.08, 0.09)) * pow(0.5 + 0.5 * sin(p.y * 85.0 + x * 40.0), 5.0);
    lines += front * 0.7 * exp(-pow((p.y - 7.165 + 0.25 * (x - 0.29) * (x - 0.29)) / 0.014, 2.0)) * bump(vec2(x, 0.0), vec2(0.28, 0.0), vec2(0.13, 1.0));
    skin *= 1.0 - vec3(0.34, 0.42, 0.45) * clamp(lines, 0.0, 1.0) * smoothstep(0.12, 0.8, age);
    skin = mix(skin, vec3(dot(skin, vec3(0.3, 0.6, 0.1))), 0.10 * age);

    vec3 lip_color = mix(skin * mix(vec3(0.80, 0.56, 0.54), vec3(0.74, 0.42, 0.42), face.y), vec3(0.42, 0.02, 0.035), face.z * 0.9);
    float lips = smoothstep(0.25, 0.75, mask.r);
    skin = mix(skin, lip_color * (0.92 + 0.3 * noise(vec3(p.x * 60.0, p.y * 6.0, 1.0))), lips);
    skin = mix(skin, skin * vec3(0.86, 0.78, 0.76), 0.6 * mask.g);

    float beard = beard_mask(p) * (1.0 - lips);
    float grain = 0.55 + 0.9 * (noise(p * 70.0) - 0.2);
    skin = mix(skin, mix(hair_albedo, skin, 0.25), clamp(face.w * beard * grain, 0.0, 0.9));
    float mustache = bump(vec2(x, p.y), vec2(0.09, 6.805), vec2(0.16, 0.045)) * step(0.9, p.z) * (1.0 - lips);
    skin = mix(skin, hair_albedo, clamp(brows_b.z * mustache * 1.2, 0.0, 0.85));

    float edge = p.y - hairline_at(p) + 0.09 * (fbm(p * 14.0 + seed) - 0.5);
    float scalp = smoothstep(-0.03, 0.08, edge) * (1.0 - mask.b);
    skin = mix(skin, hair_albedo * (0.7 + 0.5 * noise(p * 60.0)), scalp * brows_b.y);
    float brow = brow_mask(p);
    skin = mix(skin, brow_albedo, clamp(brow, 0.0, 0.95));

    float gloss = mix(0.045 + 0.05 * marks.w, 0.02, max(scalp * brows_b.y, max(brow, beard * face.w)));
    gloss *= 0.7 + 0.9 * (bump(p.xy, vec2(0.0, 7.1), vec2(0.13, 0.4)) + forehead) * marks.w;
    gloss = mix(gloss, 0.10 + 0.10 * face.z, lips);
    vec3 bent = normalize(n + 0.10 * vec3(noise(p * 45.0) - 0.5, noise(p * 45.0 + 9.0) - 0.5, noise(p * 45.0 + 17.0) - 0.5));
    float inside = gl_FrontFacing ? 1.0 : 0.25;
    color = vec4(to_screen(shade(skin, v_position, bent, vec3(0.34, 0.23, 0.18), gloss, 14.0, v_open) * inside), 1.0);
}
